"""The steps of an attention node that are on their way, and whom each of them waits for."""

from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.attention_node.step_output import StepOutput
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.device import Device
from megainfer.errors import NodeDied
from megainfer.m2n.mailbox import AttentionPort, Handle
from megainfer.pipeline import SAMPLER, PingPong

LOOK_SECONDS = 20e-6
"""How long a node sleeps at most while its device finds tokens: no bell rings for them."""


@dataclass(slots=True)
class Flight:
    """A step on its way through the layers; how far it is and whom it awaits, PingPong knows."""

    step: Step
    batch: StepBatch
    x: Tensor  # [T, D], the residual stream
    handle: Handle | None = None  # the dispatch that is away
    output: StepOutput | None = None  # after the last layer
    sent_at: float = 0.0  # when it last began to wait, on the monotonic clock


def batch_of(step: Step, device: Device) -> StepBatch:
    """A step as the model takes it."""
    return build_batch([_chunk_input(chunk) for chunk in step.chunks], device)


class Flights:
    """At most one a micro-batch, in the order that PingPong gives.

    reply_timeout: seconds after which an expert node, or this node's device, counts as hung.
    """

    def __init__(self, pingpong: PingPong, port: AttentionPort, reply_timeout: float) -> None:
        self._pingpong = pingpong
        self._port = port
        self._reply_timeout = reply_timeout
        self._flights: dict[int, Flight] = {}  # by micro-batch; those that drain too

    @property
    def idle(self) -> tuple[int, ...]:
        """The micro-batches that may start a step."""
        return self._pingpong.idle()

    def sleep_bound(self, timeout: float) -> float:
        """See `AttentionNode.sleep_bound`."""
        return min(timeout, LOOK_SECONDS) if self._pingpong.awaiting_sampler else timeout

    def start(self, flight: Flight) -> None:
        """In an idle micro-batch."""
        step = flight.step
        self._flights[step.micro_batch] = flight
        self._pingpong.start(step.micro_batch, step.number, step.depends_on)

    def next(self) -> Flight | None:
        """Whose turn it is."""
        micro_batch = self._pingpong.next()
        return None if micro_batch is None else self._flights[micro_batch]

    def next_layer(self, flight: Flight) -> int:
        """The first layer that it has not run."""
        return self._pingpong.next_layer(flight.step.micro_batch)

    def dispatched(self, flight: Flight, handle: Handle) -> None:
        """It has run the attention half of the handle's layer."""
        flight.handle, flight.sent_at = handle, monotonic()
        self._pingpong.dispatched(flight.step.micro_batch, handle.layer, handle.awaiting)

    def sampling(self, flight: Flight, output: StepOutput) -> bool:
        """It has been through all layers; whether it may finish at once, as it may on the host."""
        micro_batch = flight.step.micro_batch
        flight.output, flight.sent_at = output, monotonic()
        self._pingpong.sampling(micro_batch)
        if not output.done():
            return False
        return self._pingpong.sampled(micro_batch)

    def finished(self, flight: Flight) -> None:
        """Its result was taken; the micro-batch is idle."""
        self._pingpong.finished(flight.step.micro_batch)
        del self._flights[flight.step.micro_batch]

    def hear(self) -> list[tuple[int, str]]:
        """Take in what has come; returns the micro-batches whose experts failed, and how."""
        if self._pingpong.awaiting_sampler:
            self._hear_device()
        failures = []
        for micro_batch, layer, expert_node, error in self._port.poll():
            if self._pingpong.replied(micro_batch, layer, expert_node):
                self._rest_if_idle(micro_batch)
            elif error is not None:
                message = f"expert node {expert_node} failed at layer {layer} of micro-batch "
                failures.append((micro_batch, f"{message}{micro_batch}: {error}"))
        return failures

    def abandon(self, micro_batch: int) -> list[Flight]:
        """Take this micro-batch's step away, and those that build on the KV it would have written,
        latest first; what they sent is waited for before their micro-batches are idle."""
        ended = [(mb, self._flights[mb]) for mb in self._pingpong.abandoned(micro_batch)]
        for mb, _ in ended:
            self._rest_if_idle(mb)
        return [flight for _, flight in reversed(ended)]

    def abandon_all(self) -> list[Flight]:
        """Every step's, latest first, at the end of an epoch: expert nodes owe nothing any more,
        and none of them expects a word of these micro-batches."""
        ended = [self._flights[mb] for mb in self._pingpong.all_abandoned()]
        for micro_batch in self._pingpong.idle():
            self._flights.pop(micro_batch, None)
        return ended[::-1]

    def check_overdue(self) -> None:
        """Raises NodeDied when a step has waited for too long for somebody who lives, and is named.

        One that is gone is waited for without end here: the supervisor brings it back, in another
        epoch, or ends the instance.
        """
        since = monotonic() - self._reply_timeout
        for micro_batch, flight in self._flights.items():
            if flight.sent_at < since and (awaiting := self._pingpong.awaiting(micro_batch)):
                self._check(flight, awaiting)

    def _check(self, flight: Flight, awaiting: frozenset[int]) -> None:
        if silent := awaiting - self._port.lost_peers():
            raise NodeDied(
                f"{_name(min(silent))} has not answered {_what(flight)} for "
                f"{monotonic() - flight.sent_at:.3g} s"
            )

    def _hear_device(self) -> None:
        for micro_batch in sorted(self._pingpong.awaiting_sampler):
            output = self._flights[micro_batch].output
            assert output is not None, f"micro-batch {micro_batch} awaits tokens of no step"
            if output.done():
                self._pingpong.sampled(micro_batch)
                self._rest_if_idle(micro_batch)

    def _rest_if_idle(self, micro_batch: int) -> None:
        """An abandoned step that nobody owes anything any more is gone."""
        if micro_batch in self._pingpong.idle():
            del self._flights[micro_batch]
            self._port.rest(micro_batch)


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


def _name(peer: int) -> str:
    return "this node's own device" if peer == SAMPLER else f"expert node {peer}"


def _what(flight: Flight) -> str:
    layer = "the head" if flight.output or not flight.handle else f"layer {flight.handle.layer}"
    return f"{layer} of micro-batch {flight.step.micro_batch}"
