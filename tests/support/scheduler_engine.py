"""A model whose KV cache is a dictionary: it runs the scheduler's steps and checks each read.

The "KV" of a token is a number that depends on it and on the KV of the token before it, so that
it stands for the whole context, as in a real model. A context that was overwritten, freed too
early, not written yet or taken from another prompt shows as a wrong number. Where the scheduler is
told of recurrent states, a chunk begins from what its sequence's slot holds instead.
"""

from dataclasses import dataclass, field
from typing import Any

from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.sequence import Sequence
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.messages.requests import FinishReason, Submit, TokenEvent

VOCABULARY = 3  # small, so that prompts and answers often agree
EMPTY = 0  # the context before the first token
BEING_WRITTEN = -1  # by a step in flight: at any time from its composing to its end


def extend(context: int, token: int) -> int:
    return hash((context, token))


def next_token(context: int) -> int:
    return context % VOCABULARY


def config(**changes: float | None) -> SchedulerConfig:
    values: dict[str, Any] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "max_model_len": 64,
        "num_micro_batches": 2,
        **changes,
    }
    return SchedulerConfig(**values)


def submit(
    request_id: str,
    prompt: list[int],
    max_tokens: int = 4,
    stop: tuple[int, ...] = (),
    priority: int = 0,
    client: str = "",
) -> Submit:
    return Submit(
        request_id=request_id,
        prompt=prompt,
        temperature=0.0,
        top_p=1.0,
        top_k=-1,
        seed=0,
        max_tokens=max_tokens,
        stop_token_ids=list(stop),
        priority=priority,
        client=client,
    )


def answer(request: Submit, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What this model says when it is asked alone."""
    context, output = EMPTY, []
    for token in request.prompt:
        context = extend(context, token)
    while True:
        output.append(next_token(context))
        if output[-1] in request.stop_token_ids:
            return output, FinishReason.STOP
        if len(output) == request.max_tokens or len(request.prompt) + len(output) == max_model_len:
            return output, FinishReason.LENGTH
        context = extend(context, output[-1])


@dataclass
class Flight:
    step: Step
    block_ids: list[list[int]]  # of each chunk, as they were when the step was composed
    slots: list[int | None]  # of each chunk
    sampled: list[int] | None = None  # None: has not run yet


@dataclass
class Engine:
    """Takes steps from composing to their end, in the order that the test wants."""

    scheduler: Scheduler
    kv: dict[tuple[int, int], int] = field(default_factory=dict)  # (block, place in it)
    states: dict[int | None, int] = field(default_factory=dict)  # by slot
    flights: dict[int, Flight] = field(default_factory=dict)  # by step number
    outputs: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, FinishReason] = field(default_factory=dict)
    cached: dict[str, list[int]] = field(default_factory=dict)
    served: list[Sequence] = field(default_factory=list)  # of the steps that ended, for `drain`

    def compose(self, micro_batch: int) -> Step | None:
        step = self.scheduler.compose(micro_batch)
        if step is None:
            return None
        sequences = [chunk.sequence for chunk in step.chunks]
        slots = [sequence.state_slot for sequence in sequences]
        flight = Flight(step, [list(sequence.block_ids) for sequence in sequences], slots)
        for chunk, block_ids in zip(step.chunks, flight.block_ids, strict=True):
            for position in range(chunk.start, chunk.end):
                self.kv[self._place(chunk, block_ids, position)] = BEING_WRITTEN
        self.flights[step.number] = flight
        return step

    def may_run(self, flight: Flight) -> bool:
        waits_for = [self.flights[n] for n in flight.step.depends_on if n in self.flights]
        return flight.sampled is None and all(f.sampled is not None for f in waits_for)

    def may_end(self, flight: Flight) -> bool:
        return flight.sampled is not None and not self.flights.keys() & set(flight.step.depends_on)

    def run(self, flight: Flight) -> None:
        of_chunks = zip(flight.step.chunks, flight.block_ids, flight.slots, strict=True)
        contexts = [self._write(*each) for each in of_chunks]
        pairs = zip(flight.step.chunks, contexts, strict=True)
        flight.sampled = [next_token(context) for chunk, context in pairs if chunk.samples]

    def end(self, flight: Flight) -> list[TokenEvent]:
        assert flight.sampled is not None
        for chunk, block_ids in zip(flight.step.chunks, flight.block_ids, strict=True):
            self._check(chunk, block_ids)
        del self.flights[flight.step.number]
        self.served += [chunk.sequence for chunk in flight.step.chunks]
        return self._hear(self.scheduler.complete(flight.step, flight.sampled))

    def finish(self, step: Step) -> list[TokenEvent]:
        self.run(self.flights[step.number])
        return self.end(self.flights[step.number])

    def abandon(self, flight: Flight) -> None:
        del self.flights[flight.step.number]
        self._hear(self.scheduler.abandon(flight.step))

    def dependents(self, flight: Flight) -> list[Flight]:
        """The flight and all that depend on it, oldest first."""
        numbers, found = {flight.step.number}, [flight]
        for other in self.flights.values():
            if numbers & set(other.step.depends_on):
                numbers.add(other.step.number)
                found.append(other)
        return found

    def offer(self) -> list[Step]:
        """A step for every idle micro-batch that has work, as the node does after each event."""
        micro_batches = range(self.scheduler.config.num_micro_batches)
        offered = [self.compose(mb) for mb in micro_batches if self.scheduler.has_work(mb)]
        assert self.flights or not self.scheduler.live, "requests are alive, nothing is in flight"
        return [step for step in offered if step is not None]

    def round(self) -> list[TokenEvent]:
        """Offer, then run and end all that is in flight, oldest first."""
        self.offer()
        steps = [flight.step for flight in self.flights.values()]
        return [event for step in steps for event in self.finish(step)]

    def drain(self) -> None:
        """Two rounds must bring the first running sequence on, or one that comes before it (the
        next of those that had waited for longer, say), so that nobody starves.

        In one of them it may be left out, for younger ones whose steps were composed before.
        """
        rank = self.scheduler._pool.turns.rank
        while self.scheduler.live:
            running = [sequence for sequence in self.scheduler.live if sequence.block_ids]
            first = min(running, key=rank, default=None)
            self.served.clear()
            self.round()
            self.round()
            self.scheduler.check_integrity()
            assert first is None or any(
                s is first or s.order < first.order or rank(s) < rank(first) for s in self.served
            ), first

    def _write(self, chunk: Chunk, block_ids: list[int], slot: int | None) -> int:
        first = chunk.start - 1
        if first < 0:
            context = EMPTY
        elif self.scheduler.config.recurrent:
            context = self.states[slot]
        else:
            context = self.kv[self._place(chunk, block_ids, first)]
        for position, token in enumerate(chunk.token_ids, chunk.start):
            context = extend(context, token)
            self.kv[self._place(chunk, block_ids, position)] = context
        self.states[slot] = context
        self._check(chunk, block_ids)
        return context

    def _check(self, chunk: Chunk, block_ids: list[int]) -> None:
        """All that the chunk's last row attends to is its own sequence's context."""
        context = EMPTY
        for position, token in enumerate(chunk.sequence.token_ids[: chunk.end]):
            context = extend(context, token)
            found = self.kv.get(self._place(chunk, block_ids, position))
            assert found == context, f"{chunk.sequence.request_id}: wrong KV at {position}"

    def _place(self, chunk: Chunk, block_ids: list[int], position: int) -> tuple[int, int]:
        block, place = divmod(position, chunk.sequence.block_size)
        return block_ids[block], place

    def _hear(self, events: list[TokenEvent]) -> list[TokenEvent]:
        for event in events:
            assert event.request_id not in self.finished
            self.outputs.setdefault(event.request_id, []).extend(event.token_ids)
            self.cached.setdefault(event.request_id, []).append(event.cached_tokens)
            if event.finish_reason is not None:
                self.finished[event.request_id] = event.finish_reason
        return events


def engine_for(*requests: Submit, **changes: float) -> Engine:
    engine = Engine(Scheduler(config(**changes)))
    for request in requests:
        engine.scheduler.add(request)
    return engine


def rows(step: Step | None) -> list[tuple[str, int, int, bool]]:
    assert step is not None
    return [(c.sequence.request_id, c.start, c.length, c.samples) for c in step.chunks]


def prompt(length: int, first: int = 0) -> list[int]:
    """Prompts with different `first` share no prefix."""
    return [first, *([1] * (length - 1))]


def step_of(engine: Engine, micro_batch: int) -> Step:
    step = engine.compose(micro_batch)
    assert step is not None
    return step


def composed(engine: Engine, *micro_batches: int) -> list[Step]:
    return [step_of(engine, micro_batch) for micro_batch in micro_batches]


def homes(engine: Engine) -> list[int | None]:
    return [sequence.micro_batch for sequence in engine.scheduler.live]
