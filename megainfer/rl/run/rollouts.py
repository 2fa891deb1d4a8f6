"""A step's windows, drawn by an engine."""

from collections.abc import Sequence

from megainfer.rl.rollout.engine import Context, RolloutEngine
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
        for sample, window in zip(samples, windows, strict=True):
            sample.add(window, self._most, self._engine.end_tokens)
