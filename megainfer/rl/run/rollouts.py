"""A step's windows, drawn by an engine."""

from collections.abc import Generator, Sequence

from megainfer.errors import ProtocolError
from megainfer.rl.rollout.engine import Context, Drawn, RolloutEngine
from megainfer.rl.rollout.seeds import seed_of
from megainfer.rl.samples.sample import Sample, Window


class Rollouts:
    """Adds a window to each answer.

    window, most: tokens of a window, and of a whole answer, at most. seed: of the run. stale:
    whether an answer goes on from keys and values of its earlier windows' weights.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        window: int,
        most: int,
        vocab_size: int,
        seed: int,
        stale: bool = False,
    ) -> None:
        self._engine = engine
        self._window = window
        self._most = most
        self._vocab_size = vocab_size
        self._seed = seed
        self._stale = stale

    def extend(
        self, samples: Sequence[Sample], version: int
    ) -> Generator[tuple[int, float], None, None]:
        """One window each, drawn with the weights of this version: of each as it ends its place in
        `samples`, and when, in seconds of `perf_counter`.

        Raises ProtocolError for what can't be trained on; the answer hasn't grown then.
        """
        contexts = [
            Context(
                sample.token_ids,
                self.room(sample),
                seed_of(self._seed, "answer", sample.number),
                stale_prefix=self._stale and bool(sample.windows),
            )
            for sample in samples
        ]
        left = set(range(len(samples)))
        for place, drawn, at in self._engine.draw_each(contexts):
            window = Window(
                tuple(drawn.token_ids), tuple(drawn.logprobs), version, stale=drawn.stale
            )
            window.check(contexts[place].max_tokens, self._vocab_size, self._engine.end_tokens)
            _check_routing(drawn, len(contexts[place].token_ids))
            left.remove(place)
            sample = samples[place]
            sample.add(window, self._most, self._engine.end_tokens)
            sample.routing = drawn.routing
            yield place, at
        if left:
            raise ProtocolError(f"{len(left)} of {len(samples)} rollouts never ended")

    def room(self, sample: Sample) -> int:
        """Tokens that its next window may have."""
        return sample.room(self._window, self._most)


def _check_routing(drawn: Drawn, context: int) -> None:
    """Raises ProtocolError where it isn't that of all tokens but the last."""
    tokens, routing = context + len(drawn.token_ids) - 1, drawn.routing
    if routing is not None and (routing.start, routing.stop) != (0, tokens):
        raise ProtocolError(
            f"a rollout has the experts of tokens {routing.start} to {routing.stop}, and must have "
            f"those of 0 to {tokens}"
        )
