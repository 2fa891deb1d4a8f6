"""A step's windows, drawn by an engine."""

from collections.abc import Sequence

from megainfer.errors import ProtocolError
from megainfer.rl.rollout.engine import Context, Drawn, RolloutEngine
from megainfer.rl.rollout.seeds import seed_of
from megainfer.rl.samples.sample import Sample, Window


class Rollouts:
    """Adds a window to each answer.

    window, most: tokens of a window, and of a whole answer, at most. seed: of the run.
    """

    def __init__(
        self, engine: RolloutEngine, window: int, most: int, vocab_size: int, seed: int
    ) -> None:
        self._engine = engine
        self._window = window
        self._most = most
        self._vocab_size = vocab_size
        self._seed = seed

    def extend(self, samples: Sequence[Sample], version: int) -> None:
        """One window each, drawn with the weights of this version.

        Raises ProtocolError for what can't be trained on; then no answer has grown.
        """
        contexts = [
            Context(
                sample.token_ids,
                sample.room(self._window, self._most),
                seed_of(self._seed, "answer", sample.number),
            )
            for sample in samples
        ]
        drawn = self._engine.draw(contexts)
        windows = [Window(tuple(d.token_ids), tuple(d.logprobs), version) for d in drawn]
        for window, context in zip(windows, contexts, strict=True):
            window.check(context.max_tokens, self._vocab_size, self._engine.end_tokens)
        for one, context in zip(drawn, contexts, strict=True):
            _check_routing(one, len(context.token_ids))
        for sample, window, one in zip(samples, windows, drawn, strict=True):
            sample.add(window, self._most, self._engine.end_tokens)
            sample.routing = one.routing


def _check_routing(drawn: Drawn, context: int) -> None:
    """Raises ProtocolError where it isn't that of all tokens but the last."""
    tokens, routing = context + len(drawn.token_ids) - 1, drawn.routing
    if routing is not None and (routing.start, routing.stop) != (0, tokens):
        raise ProtocolError(
            f"a rollout has the experts of tokens {routing.start} to {routing.stop}, and must have "
            f"those of 0 to {tokens}"
        )
