"""The attention node: whose turn it is, and what happens in a turn.

A step of a micro-batch goes: compose and embed; then for each MoE layer attention half and
dispatch, away to the experts, combine; after the last layer sample, tell the front end, compose
the next step. Between any two of these another micro-batch may have its turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from megainfer.attention_node.compiling import Compiling
from megainfer.attention_node.intake import Intake
from megainfer.attention_node.model import StepModel
from megainfer.attention_node.prompt_scores import score_prompts
from megainfer.attention_node.sample_rows import NOBODYS_ROW, sample_row
from megainfer.attention_node.sampling.sampler import RowError, SampleOutput, SampleRow, sample
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.attention_node.scheduling.tuning import MicroBatchTuner, Progress
from megainfer.attention_node.token_messages import token_messages
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.errors import MegaInferError, NodeDied
from megainfer.instruments.distribution import Distribution
from megainfer.instruments.stage_clock import Span, StageClock
from megainfer.m2n.mailbox import AttentionPort, Handle
from megainfer.messages import (
    Abort,
    FromNode,
    RequestFailed,
    Reset,
    Submit,
    ToNode,
)
from megainfer.pipeline import PingPong
from megainfer.structured.grammar import GrammarFailed

Emit = Callable[[FromNode], None]

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bounds of the distribution of tokens in a step, as vLLM's."""
REPLY_TIMEOUT_SECONDS = 60.0
"""Far more than any batch takes to compute: an expert node that is silent for so long is hung."""


@dataclass
class Flight:
    """A step on its way through the layers."""

    step: Step
    batch: StepBatch
    x: Tensor  # [T, D], the residual stream
    next_layer: int = 0
    handle: Handle | None = None  # the dispatch that is away
    sent_at: float = 0.0  # when it left, on the monotonic clock


class AttentionNode:
    """One attention node over any port; `emit` takes what the front end is to hear.

    trace: how many of its latest spans it keeps for `take_spans`. tuner: who chooses in how many of
    the micro-batches requests decode; without one, in all. compiling: where grammars become
    matchers; without it, requests with one are refused.
    """

    def __init__(
        self,
        node: int,
        model: StepModel,
        kv: KVCache,
        scheduler: Scheduler,
        port: AttentionPort,
        emit: Emit,
        reply_timeout: float = REPLY_TIMEOUT_SECONDS,
        trace: int = 0,
        tuner: MicroBatchTuner | None = None,
        compiling: Compiling | None = None,
    ) -> None:
        self.node = node
        self.port = port
        self.scheduler = scheduler
        self._model = model
        self._kv = kv
        self._emit = emit
        self._pingpong = PingPong(scheduler.config.num_micro_batches, len(model.spec.layers))
        self._flights: dict[int, Flight] = {}  # by micro-batch
        # Abandoned steps, and the expert nodes that still owe replies: their slots aren't free yet.
        self._draining: dict[int, tuple[Flight, set[int]]] = {}
        self._reply_timeout = reply_timeout
        self._clock = StageClock(trace)
        self._tuner = tuner
        self._intake = Intake(node, model.spec.vocab_size, scheduler, compiling, emit)
        if tuner is not None:
            scheduler.use_micro_batches(tuner.active)
        self._generated = 0
        self._step_tokens = Distribution(STEP_TOKENS)

    def hear(self, message: ToNode) -> None:
        """Take one message of the front end; a bad request is answered, never raised."""
        match message:
            case Submit():
                self._intake.submit(message)
            case Abort(request_id=request_id):
                self._intake.abort(request_id)
            case Reset():
                self.scheduler.drop_cache()

    def run_once(self) -> bool:
        """One turn: start an idle micro-batch that has work, else advance the oldest ready one.

        Raises NodeDied when an expert node has owed a reply for too long.
        """
        self._hear_replies()
        self._intake.turn()
        if self._start_idle():
            return True
        micro_batch = self._pingpong.next()
        if micro_batch is None:
            self._check_overdue()
            return False
        self._take_turn(micro_batch)
        return True

    def counters(self) -> dict[str, Any]:
        """Stage times, scheduler's and port's counters; `attention` is T_a's numerator.

        Requests whose grammar is being compiled are among those waiting.
        """
        scheduled = self.scheduler.counters()
        return {
            **self._clock.counters(),
            **scheduled,
            "waiting": scheduled["waiting"] + self._intake.num_compiling,
            **self.port.counters(),
            "generated_tokens": self._generated,
            "step_tokens": self._step_tokens.as_dict(),
        }

    def keep_spans(self, count: int) -> None:
        """See `StageClock.keep_latest`."""
        self._clock.keep_latest(count)

    def take_spans(self) -> list[Span]:
        """See `StageClock.take_spans`."""
        return self._clock.take_spans()

    def _hear_replies(self) -> None:
        for arrival in self.port.poll():
            micro_batch = arrival.micro_batch
            if micro_batch in self._draining:
                self._drain(micro_batch, arrival.expert_node)
                continue
            self._pingpong.replied(micro_batch, arrival.layer, arrival.expert_node)
            if arrival.error is not None:
                self._fail(
                    micro_batch,
                    f"expert node {arrival.expert_node} failed at layer {arrival.layer} of "
                    f"micro-batch {micro_batch}: {arrival.error}",
                )

    def _check_overdue(self) -> None:
        away = [(f, self._pingpong.awaiting(mb)) for mb, f in self._flights.items()]
        longest_ago = monotonic() - self._reply_timeout
        for flight, owing in [*away, *self._draining.values()]:
            if owing and flight.sent_at < longest_ago:
                raise NodeDied(
                    f"expert node {min(owing)} has not answered layer {flight.next_layer - 1} of "
                    f"micro-batch {flight.step.micro_batch} for {self._reply_timeout:g} s"
                )

    def _start_idle(self) -> bool:
        """Start every idle micro-batch that has work; none starves behind those in flight."""
        started = 0
        for micro_batch in self._pingpong.idle():
            if micro_batch not in self._draining:
                started += self._compose(micro_batch)
        return started > 0

    def _compose(self, micro_batch: int) -> bool:
        if not self.scheduler.has_work(micro_batch):
            return False
        with self._clock.span("schedule", micro_batch):
            step = self.scheduler.compose(micro_batch)
            if step is None:
                return False
            batch = build_batch([_chunk_input(chunk) for chunk in step.chunks])
        with self._clock.span("embed", micro_batch):
            flight = Flight(step, batch, self._model.embed(batch))
        self._flights[micro_batch] = flight
        self._pingpong.start(micro_batch, step.number, step.depends_on)
        return True

    def _take_turn(self, micro_batch: int) -> None:
        try:
            self._advance(self._flights[micro_batch])
        except MegaInferError as error:
            self._fail(micro_batch, str(error))

    def _advance(self, flight: Flight) -> None:
        micro_batch = flight.step.micro_batch
        if flight.handle is not None:
            with self._clock.span("combine", micro_batch, flight.handle.layer):
                self.port.combine(flight.handle, flight.x)
        clock = self._clock.of(micro_batch)
        point = self._model.advance(flight.x, flight.next_layer, flight.batch, self._kv, clock)
        if point is None:
            self._finish(flight)
            return
        with self._clock.span("dispatch", micro_batch, point.layer):
            handle = self.port.dispatch(micro_batch, point.layer, point.hidden, point.parts)
        flight.handle, flight.next_layer, flight.sent_at = handle, point.layer + 1, monotonic()
        self._pingpong.dispatched(micro_batch, point.layer, handle.awaiting)
        with self._clock.span("shared", micro_batch, point.layer):
            shared = self._model.shared(point.layer, point.hidden)
            if shared is not None:
                flight.x += shared

    def _finish(self, flight: Flight) -> None:
        """Sample, tell, and begin the micro-batch's next step at once."""
        micro_batch = flight.step.micro_batch
        chunks = [chunk for chunk in flight.step.chunks if chunk.samples]
        with self._clock.span("head", micro_batch):
            logits = self._model.logits(flight.x, flight.batch.sample_rows)
            self._score(flight)
        with self._clock.span("sample", micro_batch):
            output = self._sample(logits, chunks)
        self._step_tokens.observe(flight.step.num_rows)
        self._pingpong.finished(micro_batch)
        del self._flights[micro_batch]
        with self._clock.span("schedule", micro_batch):
            events = self.scheduler.complete(flight.step, output.token_ids, output.logprobs)
            if self._tuner is not None:
                self._tune(self._tuner, flight.step, len(chunks))
        if events:
            self._generated += sum(len(event.token_ids) for event in events)
            for message in token_messages(self.node, events):
                self._emit(message)
        if not self._compose(micro_batch):
            self.port.rest(micro_batch)

    def _tune(self, tuner: MicroBatchTuner, step: Step, tokens: int) -> None:
        before, chunks = tuner.active, step.chunks
        now = tuner.step_ended(
            Progress(
                now=monotonic(),
                tokens=tokens,
                running=max(1, self.scheduler.num_running),
                context=sum(chunk.end for chunk in chunks) / len(chunks),
                prefills=step.num_rows > len(chunks),
            )
        )
        if now != before:
            self.scheduler.use_micro_batches(now)

    def _score(self, flight: Flight) -> None:
        """The prompts' log-probabilities; a request whose logits are not finite fails alone."""
        for request_id, error in score_prompts(self._model, flight.x, flight.batch, flight.step):
            self._end(request_id, error, error.client_error)

    def _sample(self, logits: Tensor, chunks: Sequence[Chunk]) -> SampleOutput:
        """A token for each chunk; a request that can't be sampled for fails alone."""
        rows = [self._row(chunk) for chunk in chunks]
        while True:  # each time at least one row fewer can fail
            try:
                return sample(logits, rows, self._model.tokens)
            except RowError as error:
                for row in error.rows:
                    self._end(chunks[row].sequence.request_id, error, error.client_error)
                    rows[row] = NOBODYS_ROW
                logits = logits.index_fill(0, torch.tensor(error.rows), 0.0)

    def _row(self, chunk: Chunk) -> SampleRow:
        try:
            return sample_row(chunk)
        except GrammarFailed as error:
            self._end(chunk.sequence.request_id, error)
            return NOBODYS_ROW

    def _end(self, request_id: str, error: MegaInferError, client_error: bool = False) -> None:
        """Of a request in flight, whose token in this step is nobody's."""
        self.scheduler.abort(request_id)
        self._fail_request(request_id, str(error), client_error)

    def _fail(self, micro_batch: int, message: str) -> None:
        """End this micro-batch's step, and those that build on the KV it would have written."""
        awaiting = {mb: self._pingpong.awaiting(mb) for mb in self._flights}
        ended = [self._flights[mb] for mb in self._pingpong.abandoned(micro_batch)]
        for flight in reversed(ended):
            mb = flight.step.micro_batch
            del self._flights[mb]
            self.scheduler.abandon(flight.step)
            if awaiting[mb]:
                self._draining[mb] = flight, set(awaiting[mb])
            else:
                self.port.rest(mb)
        for request_id in {c.sequence.request_id for flight in ended for c in flight.step.chunks}:
            self.scheduler.abort(request_id)
            self._fail_request(request_id, message)

    def _drain(self, micro_batch: int, expert_node: int) -> None:
        _, owing = self._draining[micro_batch]
        owing.discard(expert_node)
        if not owing:
            del self._draining[micro_batch]
            self.port.rest(micro_batch)

    def _fail_request(self, request_id: str, message: str, client_error: bool = False) -> None:
        self._emit(RequestFailed(self.node, request_id, message, client_error))


def _chunk_input(chunk: Chunk) -> ChunkInput:
    slot = chunk.sequence.state_slot
    assert slot is not None, f"{chunk.sequence.request_id} is in a step, but has no slot"
    return ChunkInput(
        token_ids=chunk.token_ids,
        start=chunk.start,
        block_ids=chunk.sequence.block_ids,
        samples=chunk.samples,
        state_slot=slot,
    )
