"""The attention node: whose turn it is, and what happens in a turn.

A step of a micro-batch goes: compose and embed; then for each MoE layer attention half and
dispatch, away to the experts, combine; after the last layer sample, tell the front end, compose
the next step. Between any two of these another micro-batch may have its turn.
"""

from collections.abc import Sequence
from typing import Any

from megainfer.attention_node.flights import Flight, Flights, batch_of
from megainfer.attention_node.intake import Intake
from megainfer.attention_node.model import MoEPoint
from megainfer.attention_node.parts import NodeParts, NodeSettings
from megainfer.attention_node.scheduling.sequence import Status
from megainfer.attention_node.step_output import Failure, StepResult, begin_output
from megainfer.attention_node.token_messages import token_messages
from megainfer.checkpoint.switch import Switch
from megainfer.device import marks_of
from megainfer.errors import MegaInferError, NodeDied
from megainfer.instruments.distribution import Distribution
from megainfer.instruments.stage_clock import StageClock
from megainfer.messages.requests import Abort, Reset, Submit, TokenEvent, ToNode
from megainfer.pipeline import PingPong
from megainfer.topology import Membership

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bounds of the distribution of tokens in a step, as vLLM's."""


class AttentionNode:
    """One attention node over any port."""

    def __init__(self, parts: NodeParts, settings: NodeSettings) -> None:
        self.node = settings.node
        self.port = parts.port
        self.scheduler = parts.scheduler
        self._parts = parts
        self._model = parts.model
        pingpong = PingPong(parts.scheduler.config.num_micro_batches, len(parts.model.spec.layers))
        self._flights = Flights(pingpong, parts.port, settings.reply_timeout)
        self.clock = StageClock(settings.trace, marks_of(parts.device))
        self.intake = Intake(
            settings.node, parts.model.spec.vocab_size, parts.scheduler, parts.compiling, parts.emit
        )
        self._generated = 0
        self._step_tokens = Distribution(STEP_TOKENS)
        parts.tuner.begin(parts.scheduler)

    def hear(self, message: ToNode) -> None:
        """Take one message of the front end; a bad request is answered, never raised."""
        match message:
            case Submit():
                self.intake.submit(message)
            case Abort(request_id=request_id):
                self.intake.abort(request_id)
            case Reset():
                self.scheduler.drop_cache()

    def run_once(self) -> bool:
        """Start an idle micro-batch with work, or advance the oldest ready one. Raises NodeDied."""
        for micro_batch, failure in self._flights.hear():
            self._fail(micro_batch, failure)
        self.intake.turn()
        if self._start_idle():
            return True
        if (flight := self._flights.next()) is not None:
            self._take_turn(flight)
            return True
        self._flights.check_overdue()
        return False

    def enter(self, membership: Membership, switch: Switch | None = None) -> None:
        """Take part in this membership: steps in flight are taken back, to be computed again in it.

        switch: to its weights, where they are others; requests begin again then. Raises ConfigError
        when experts can't be where its placement has them.
        """
        self._take_back(self._flights.abandon_all())
        if switch is not None:
            switch()
            self.scheduler.renew(membership.weights.name)
        self._model.place(membership.placement)
        self.port.set_epoch(membership.epoch, membership.experts)

    def sleep_bound(self, timeout: float) -> float:
        """Seconds until the node wants to look again though nobody rang, at most `timeout`."""
        return self._flights.sleep_bound(timeout)

    def counters(self) -> dict[str, Any]:
        """Stage times (`attention` is T_a's numerator), scheduler's and port's counters; requests
        whose grammar is being compiled are among those waiting."""
        scheduled = self.scheduler.counters()
        return {
            **self.clock.counters(),
            **scheduled,
            "waiting": scheduled["waiting"] + self.intake.num_compiling + self.intake.num_outside,
            **self.port.counters(),
            "generated_tokens": self._generated,
            "step_tokens": self._step_tokens.as_dict(),
        }

    def _start_idle(self) -> bool:
        """Start every idle micro-batch that has work; none starves behind those in flight."""
        started = False
        for micro_batch in self._flights.idle:
            started |= self._compose(micro_batch)
        return started

    def _compose(self, micro_batch: int) -> bool:
        if self.intake.is_frozen or not self.scheduler.has_work(micro_batch):
            return False
        with self.clock.host_span("schedule", micro_batch):
            step = self.scheduler.compose(micro_batch)
            if step is None:
                return False
            batch = batch_of(step, self._parts.device)
        with self.clock.span("embed", micro_batch):
            flight = Flight(step, batch, self._model.embed(batch))
        self._flights.start(flight)
        return True

    def _take_turn(self, flight: Flight) -> None:
        self._parts.work.rows(flight.step.num_rows)
        try:
            if flight.output is None:
                self._advance(flight)
            else:
                self._finish(flight, flight.output.take())
        except NodeDied:
            raise  # of another rank, whose end is this node's: its requests are replayed
        except MegaInferError as error:
            self._fail(flight.step.micro_batch, str(error))

    def _advance(self, flight: Flight) -> None:
        micro_batch = flight.step.micro_batch
        if flight.handle is not None:
            with self.clock.span("combine", micro_batch, flight.handle.layer):
                self.port.combine(flight.handle, flight.x)
        layer, clock = self._flights.next_layer(flight), self.clock.of(micro_batch)
        point = self._model.advance(flight.x, layer, flight.batch, self._parts.kv, clock)
        if point is None:
            self._sample(flight)
        else:
            self._dispatch(flight, point)

    def _dispatch(self, flight: Flight, point: MoEPoint) -> None:
        micro_batch = flight.step.micro_batch
        with self.clock.span("dispatch", micro_batch, point.layer):
            handle = self.port.dispatch(micro_batch, point.layer, point.hidden, point.parts)
        self._flights.dispatched(flight, handle)
        with self.clock.span("shared", micro_batch, point.layer):
            if (shared := self._model.shared(point.layer, point.hidden)) is not None:
                flight.x += shared

    def _sample(self, flight: Flight) -> None:
        """On the host the step ends here; on a device others have their turns meanwhile."""
        step, device = flight.step, self._parts.device
        output = begin_output(self._model, flight.x, flight.batch, step, device, self.clock)
        if self._flights.sampling(flight, output):
            self._finish(flight, output.take())

    def _finish(self, flight: Flight, result: StepResult) -> None:
        """Tell, and begin the micro-batch's next step at once."""
        step = flight.step
        for failure in result.failures:
            self._refuse(failure)
        self._step_tokens.observe(step.num_rows)
        self._flights.finished(flight)
        with self.clock.host_span("schedule", step.micro_batch):
            events = self.scheduler.complete(step, result.token_ids, result.logprobs)
            self._parts.tuner.step_ended(step, self.scheduler)
        self._tell(result.told_in(events))
        if not self._compose(step.micro_batch):
            self.port.rest(step.micro_batch)

    def _tell(self, events: Sequence[TokenEvent]) -> None:
        if events:
            self._generated += sum(len(event.token_ids) for event in events)
            for message in token_messages(self.node, events):
                self._parts.emit(message)

    def _fail(self, micro_batch: int, message: str) -> None:
        """Nobody will compute this step: the requests that it was for end."""
        for request_id in self._take_back(self._flights.abandon(micro_batch)):
            self._refuse(Failure(request_id, message))

    def _take_back(self, flights: Sequence[Flight]) -> list[str]:
        steps = [flight.step for flight in flights]
        for step in steps:
            self._tell(self.scheduler.abandon(step))
        sequences = [chunk.sequence for step in steps for chunk in step.chunks]
        alive = (s.request_id for s in sequences if s.status is not Status.FINISHED)
        return list(dict.fromkeys(alive))

    def _refuse(self, failure: Failure) -> None:
        """The request ends with an error, at its next step boundary."""
        self.scheduler.abort(failure.request_id, failure.spoiled)
        self._parts.emit(failure.told_by(self.node))
