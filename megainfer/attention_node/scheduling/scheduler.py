"""Which tokens of which requests an attention node computes next. No tensors.

A micro-batch is a continuous batch of its own: `compose` gives its next step, `complete` ends
it. Steps of different micro-batches are in flight at the same time, at most one of each, and
end in any order that keeps a step after those it depends on. What a request asks for (abort) or
must suffer (preemption) happens between its own steps, never inside one.

The caller, after each event (a request, an abort, a step's end), offers every idle micro-batch
a step, once, in any order:

    for micro_batch in range(m):
        if scheduler.has_work(micro_batch):
            step = scheduler.compose(micro_batch)

Then some step is in flight whenever a request is alive.
"""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from megainfer.attention_node.scheduling.composition import Composition
from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.landing import Landing
from megainfer.attention_node.scheduling.pool import SequencePool
from megainfer.attention_node.scheduling.sequence import Sequence
from megainfer.attention_node.scheduling.step import Step
from megainfer.attention_node.scheduling.steps_in_flight import StepsInFlight
from megainfer.errors import RequestError
from megainfer.messages.requests import Submit, TokenEvent, TokenLogprobs

if TYPE_CHECKING:
    from megainfer.structured.matcher import TokenMatcher


class Scheduler:
    """Owns every request of one attention node between `add` and its end.

    clock: seconds, by which waiting is timed.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float] = monotonic) -> None:
        self.config = config
        self._clock = clock
        self._pool = SequencePool(config)
        self._landing = Landing(self._pool, config)
        self._in_flight = StepsInFlight()
        self._num_arrivals = 0
        self._num_steps = 0

    # --- requests -------------------------------------------------------------------------------

    def add(
        self,
        submit: Submit,
        matcher: "TokenMatcher | None" = None,
        arrived_at: float | None = None,
    ) -> None:
        """Queue a request, with its grammar's matcher if it has one.

        arrived_at: since when it waits, in seconds of the clock; None means now. Raises
        RequestError if it could never be served.
        """
        self.config.check(submit)
        if self._pool.get(submit.request_id) is not None:
            raise RequestError(f"a request {submit.request_id!r} is running already", "request_id")
        since = self._clock() if arrived_at is None else arrived_at
        number, block_size = self._num_arrivals, self.config.block_size
        self._pool.add(Sequence(submit, number, block_size, since, matcher=matcher))
        self._num_arrivals += 1

    def abort(self, request_id: str, spoiled: bool = False) -> bool:
        """End a request at its own step boundary. spoiled: others with its tokens begin anew.

        True: it was at rest and is gone, without an event. False: it isn't known, or a step in
        flight holds it, and an event that ends it comes with the end of the last such step.
        """
        sequence = self._pool.get(request_id)
        if sequence is not None and spoiled:
            self._pool.spoil(sequence)
        return sequence is not None and self._pool.abort(sequence)

    def expire(self) -> list[str]:
        """End the requests that have waited for longer than they may; their ids."""
        return self._pool.expire(self._clock())

    def drop_cache(self) -> None:
        """Forget every cached prefix that no request uses."""
        self._pool.blocks.drop_cache()

    def renew(self, weights: str) -> None:
        """Weights of this name compute from now on; no step is in flight. Nothing of the old ones'
        is used, but by who asks for it: running requests begin again with the tokens that they
        have."""
        self._pool.begin_again()
        self._landing.weights = weights

    def use_micro_batches(self, count: int) -> None:
        """From now on requests decode in so many of the micro-batches; those of the others go over
        to these when their steps in flight end."""
        assert 1 <= count <= self.config.num_micro_batches, f"{count} micro-batches"
        self._pool.balance.active = count
        for micro_batch in range(count, self.config.num_micro_batches):
            if micro_batch not in self._in_flight:
                self._pool.balance.settle(micro_batch)

    # --- steps ----------------------------------------------------------------------------------

    def has_work(self, micro_batch: int) -> bool:
        """False: `compose` would give None or must not be called. True: it is worth trying."""
        if micro_batch in self._in_flight or self._pool.balance.is_retired(micro_batch):
            return False
        return bool(self._pool.balance.has_candidates(micro_batch) or self._pool.waiting)

    def compose(self, micro_batch: int) -> Step | None:
        """The next step of an idle micro-batch; None if nothing can be done in it now."""
        assert micro_batch not in self._in_flight, f"micro-batch {micro_batch} has a step already"
        if self._pool.balance.is_retired(micro_batch):
            return None
        composition = Composition(self._pool, self.config, self._num_steps, micro_batch)
        composition.place_running()
        composition.admit(self._pool.num_newcomers(self._in_flight.micro_batches))
        for sequence in composition.admitted:
            sequence.note_admission(self._clock())
        step = composition.step()
        if step is not None:
            self._num_steps += 1
            self._in_flight.begin(step)
        return step

    def complete(
        self,
        step: Step,
        token_ids: Iterable[int],
        logprobs: Iterable[TokenLogprobs | None] | None = None,
    ) -> list[TokenEvent]:
        """End a step that went through all layers, after those that it depends on.

        One token, and its log-probabilities where wanted, for each chunk that samples, in their
        order. An event for each of these follows, but for requests being aborted, and one without
        a token for each request whose abort takes effect now.
        """
        self._in_flight.check_order(step)
        self._in_flight.end(step)
        events = self._landing.commit(step, token_ids, logprobs) + self._landing.resolve(step)
        self._pool.balance.settle(step.micro_batch)
        return events

    def abandon(self, step: Step) -> list[TokenEvent]:
        """Make a step not have happened; its rows will be scheduled again.

        What recurrent states have taken in can't be taken back: with them, its sequences are
        computed again from their beginning.

        The steps that depend on it must be abandoned too, in any order; their sequences take no
        part in new ones before that. An event for each request whose abort takes effect now.
        """
        self._in_flight.end(step)
        self._landing.take_back(step)
        return self._landing.resolve(step)

    # --- insight --------------------------------------------------------------------------------

    @property
    def live(self) -> Iterable[Sequence]:
        """Every request that hasn't ended, by arrival."""
        return self._pool.live

    @property
    def num_running(self) -> int:
        """Requests with blocks."""
        return self._pool.num_running

    @property
    def steps_in_flight(self) -> tuple[Step, ...]:
        """Oldest first."""
        return self._in_flight.by_age

    def counters(self) -> dict[str, int]:
        """The state now, then totals since the start.

        micro_batches: that requests decode in. running: with blocks, those being aborted included.
        free_blocks: of num_blocks, those cached without a user included. prefix_hit_tokens: found
        in the prefix cache at admission, of prefix_queried_tokens looked up.
        """
        return {
            **self._pool.counters(),
            "num_blocks": self.config.num_blocks,
            "steps_in_flight": len(self._in_flight),
            "steps": self._num_steps,
        }

    def check_integrity(self) -> None:
        """Raise AssertionError naming all that doesn't add up: blocks, steps, assignments."""
        if problems := [*self._pool.problems(), *self._in_flight.problems(self.live)]:
            raise AssertionError("scheduler: " + "; ".join(problems))
