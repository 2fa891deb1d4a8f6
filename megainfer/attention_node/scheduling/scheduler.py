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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from megainfer.attention_node.scheduling.block_manager import BlockManager
from megainfer.attention_node.scheduling.composition import Composition
from megainfer.attention_node.scheduling.pool import SequencePool
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.state_slots import StateSlots
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.errors import ConfigError, RequestError
from megainfer.messages import FinishReason, Submit, TokenEvent, TokenLogprobs

if TYPE_CHECKING:
    from megainfer.structured.matcher import TokenMatcher

__all__ = ["Chunk", "Scheduler", "SchedulerConfig", "Sequence", "Step"]


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """recurrent: the model keeps states that take a sequence's tokens in as they come; a slot of
    them is a sequence's own while it runs.

    Raises ConfigError where one sequence of the greatest length couldn't be served, or with a
    prefix cache beside recurrent states: blocks hold none, so that a hit would skip them.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int  # running at once, over all micro-batches
    max_num_batched_tokens: int  # rows of one step
    max_model_len: int  # prompt and output tokens of one sequence
    num_micro_batches: int
    enable_prefix_cache: bool = True
    recurrent: bool = False

    def __post_init__(self) -> None:
        self._check_at_least("num_blocks", 1)
        self._check_at_least("block_size", 1)
        self._check_at_least("max_num_seqs", 1)
        self._check_at_least("max_num_batched_tokens", 1)
        self._check_at_least("max_model_len", 2)
        self._check_at_least("num_micro_batches", 1)
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ConfigError(
                f"the KV cache holds {self.num_blocks * self.block_size} tokens, one sequence may "
                f"have max_model_len = {self.max_model_len}: lower it, or give the cache more "
                "memory"
            )
        if self.recurrent and self.enable_prefix_cache:
            raise ConfigError("recurrent states don't go with a prefix cache; switch it off")

    def _check_at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")


class Scheduler:
    """Owns every request of one attention node between `add` and its end.

    clock: seconds, by which waiting is timed.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float] = monotonic) -> None:
        self.config = config
        self._clock = clock
        blocks = BlockManager(config.num_blocks, config.block_size)
        slots = StateSlots(config.max_num_seqs)
        self._pool = SequencePool(
            blocks, slots, config.num_micro_batches, config.enable_prefix_cache
        )
        self._in_flight: dict[int, Step] = {}  # by micro-batch
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
        self._check(submit)
        since = self._clock() if arrived_at is None else arrived_at
        number, block_size = self._num_arrivals, self.config.block_size
        self._pool.add(Sequence(submit, number, block_size, since, matcher=matcher))
        self._num_arrivals += 1

    def abort(self, request_id: str) -> bool:
        """End a request at its own step boundary; unknown ones are ignored.

        True: it was at rest and is gone now, no event follows. False: a step in flight holds it,
        and the event that ends it comes with the end of the last such step; or it isn't known.
        """
        sequence = self._pool.get(request_id)
        if sequence is None:
            return False
        if sequence.is_at_rest:
            self._pool.end(sequence, FinishReason.ABORT)
            return True
        self._pool.doom(sequence)
        return False

    def expire(self) -> list[str]:
        """End the requests that have waited for longer than they may; their ids."""
        now = self._clock()
        expired = [s for s in self._pool.waiting if s.has_waited_too_long(now)]
        for sequence in expired:
            self._pool.end(sequence, FinishReason.ABORT)
        return [sequence.request_id for sequence in expired]

    def drop_cache(self) -> None:
        """Forget every cached prefix that no request uses."""
        self._pool.blocks.drop_cache()

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
        if micro_batch in self._in_flight:
            return False
        if self._is_retired(micro_batch):
            return False
        return bool(self._pool.balance.has_candidates(micro_batch) or self._pool.waiting)

    def compose(self, micro_batch: int) -> Step | None:
        """The next step of an idle micro-batch; None if nothing can be done in it now."""
        assert micro_batch not in self._in_flight, f"micro-batch {micro_batch} has a step already"
        if self._is_retired(micro_batch):
            return None
        rows = self.config.max_num_batched_tokens
        composition = Composition(self._pool, self._num_steps, micro_batch, rows)
        composition.place_running()
        composition.admit(self._num_newcomers())
        self._note_admitted(composition.admitted)
        step = composition.step()
        if step is not None:
            self._num_steps += 1
            self._in_flight[micro_batch] = step
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
        early = set(step.depends_on).intersection(s.number for s in self._in_flight.values())
        assert not early, f"step {step.number} ends before steps {early}, on which it depends"
        sampling = [chunk.sequence for chunk in step.chunks if chunk.samples]
        if logprobs is None:
            logprobs = [None] * len(sampling)
        results = list(zip(sampling, token_ids, logprobs, strict=True))
        self._land(step)
        for chunk in step.chunks:
            self._commit(chunk)
        events = [self._append(*r) for r in results if r[0].status is not Status.ABORTING]
        events += self._resolve(step)
        self._pool.balance.settle(step.micro_batch)
        return events

    def abandon(self, step: Step) -> list[TokenEvent]:
        """Make a step not have happened; its rows will be scheduled again.

        What recurrent states have taken in can't be taken back: with them, its sequences are
        computed again from their beginning.

        The steps that depend on it must be abandoned too, in any order; their sequences take no
        part in new ones before that. An event follows for each request whose abort takes effect
        now.
        """
        self._land(step)
        for chunk in step.chunks:
            self._take_back(chunk)
        return self._resolve(step)

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
        return tuple(sorted(self._in_flight.values(), key=lambda step: step.number))

    def counters(self) -> dict[str, int]:
        """The state now, then totals since the start.

        micro_batches: that requests decode in. running: requests with blocks, those being aborted
        included. free_blocks: of num_blocks, those cached without a user included.
        prefix_hit_tokens: found in the prefix cache at admission, of prefix_queried_tokens looked
        up.
        """
        return {
            "micro_batches": self._pool.balance.active,
            "running": self._pool.num_running,
            "waiting": len(self._pool.waiting),
            "free_blocks": self._pool.blocks.num_free,
            "num_blocks": self.config.num_blocks,
            "steps_in_flight": len(self._in_flight),
            "steps": self._num_steps,
            "preemptions": self._pool.preemptions,
            "prefix_hit_tokens": self._pool.prefix_hit_tokens,
            "prefix_queried_tokens": self._pool.prefix_queried_tokens,
        }

    def check_integrity(self) -> None:
        """Raise AssertionError naming all that doesn't add up: blocks, steps, assignments."""
        problems = [*self._pool.problems(), *self._step_problems()]
        if problems:
            raise AssertionError("scheduler: " + "; ".join(problems))

    # --- pieces ---------------------------------------------------------------------------------

    def _check(self, submit: Submit) -> None:
        longest = self.config.max_model_len - 1
        if not submit.prompt:
            raise RequestError("the prompt is empty; it needs at least one token", "prompt")
        if len(submit.prompt) > longest:
            raise RequestError(
                f"the prompt has {len(submit.prompt)} tokens; at most {longest} leave room for an "
                f"answer in the context of {self.config.max_model_len}",
                "prompt",
            )
        if submit.max_tokens < 1:
            raise RequestError(
                f"max_tokens must be at least 1, not {submit.max_tokens}", "max_tokens"
            )
        if self._pool.get(submit.request_id) is not None:
            raise RequestError(f"a request {submit.request_id!r} is running already", "request_id")

    def _num_newcomers(self) -> int:
        """How many the micro-batch being composed may let in: its share among the idle ones."""
        free_places = self.config.max_num_seqs - self._pool.num_running
        newcomers = min(len(self._pool.waiting), free_places)
        lanes = self._num_prompt_lanes()
        num_idle = lanes - sum(micro_batch < lanes for micro_batch in self._in_flight)
        return -(-newcomers // num_idle) if num_idle > 0 else 0

    def _note_admitted(self, sequences: Iterable[Sequence]) -> None:
        now = self._clock()
        for sequence in sequences:
            if sequence.queued_seconds is None:
                sequence.queued_seconds = now - sequence.arrived_at

    def _is_retired(self, micro_batch: int) -> bool:
        """Nobody is left in it, and nobody is to come."""
        if micro_batch < self._num_prompt_lanes():
            return False
        return not self._pool.balance.has_members(micro_batch)

    def _num_prompt_lanes(self) -> int:
        """Micro-batches that may compute prompts: two even where decoding is better off in one,
        since both sides have much to compute for a prompt, and can do so at the same time."""
        return min(max(2, self._pool.balance.active), self.config.num_micro_batches)

    def _land(self, step: Step) -> None:
        known = self._in_flight.pop(step.micro_batch, None)
        assert known is step, f"step {step.number} is not in flight"
        for chunk in step.chunks:
            chunk.sequence.in_flight.remove(step.number)

    def _commit(self, chunk: Chunk) -> None:
        sequence, block_size = chunk.sequence, self.config.block_size
        assert sequence.num_computed == chunk.start, f"a gap in {sequence.request_id}"
        sequence.num_computed = chunk.end
        self._pool.publish(sequence, chunk.start // block_size, chunk.end // block_size)

    def _append(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        scores = sequence.take_scores()
        sequence.token_ids.append(token)
        reason = sequence.reason_to_finish(self.config.max_model_len)
        if reason is not None:
            self._pool.end(sequence, reason)
        is_first = sequence.num_outputs == 1
        return TokenEvent(
            request_id=sequence.request_id,
            token_ids=[token],
            finish_reason=reason,
            cached_tokens=sequence.cached_tokens if is_first else 0,
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=scores,
            queued_seconds=(sequence.queued_seconds or 0.0) if is_first else 0.0,
        )

    def _take_back(self, chunk: Chunk) -> None:
        """Its sequence keeps its blocks, which the same tokens will need again, unless it has to
        begin again."""
        sequence = chunk.sequence
        sequence.num_scheduled = min(sequence.num_scheduled, chunk.start)
        goes_on = sequence.is_decoding and not self.config.recurrent
        if sequence.status is Status.RUNNING and not goes_on:
            self._pool.stall(sequence)

    def _resolve(self, step: Step) -> list[TokenEvent]:
        """What waited for its sequences to be at rest happens now."""
        at_rest = [c.sequence for c in step.chunks if c.sequence.is_at_rest]
        doomed = [s for s in at_rest if s.status is Status.ABORTING]
        for sequence in doomed:
            self._pool.end(sequence, FinishReason.ABORT)
        for sequence in at_rest:
            if sequence.status is Status.STALLED:
                self._go_on(sequence)
        return [TokenEvent(s.request_id, [], FinishReason.ABORT) for s in doomed]

    def _go_on(self, sequence: Sequence) -> None:
        """A step of it was abandoned, and the others have ended."""
        if self.config.recurrent:
            self._pool.preempt(sequence)
        else:
            self._pool.resume(sequence)

    def _step_problems(self) -> Iterator[str]:
        chunks = [(step.number, c) for step in self.steps_in_flight for c in step.chunks]
        spans: dict[str, list[tuple[int, Chunk]]] = {}
        for number, chunk in chunks:
            spans.setdefault(chunk.sequence.request_id, []).append((number, chunk))
        for sequence in self.live:
            held = spans.pop(sequence.request_id, [])
            if [number for number, _ in held] != sequence.in_flight:
                yield f"{sequence.request_id} is in steps {sequence.in_flight}, {held} hold it"
            if sequence.status is Status.STALLED:
                continue
            bounds = [sequence.num_computed, *(c.end for _, c in held)]
            starts = [*(c.start for _, c in held), sequence.num_scheduled]
            if bounds != starts:
                yield f"{sequence.request_id}: parts end at {bounds} but begin at {starts}"
        if spans:
            yield f"steps in flight hold {list(spans)}, which are gone"
