"""What was measured, as numbers: of this everything else follows without the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelTime:
    """size: rows, or bytes. amount: FLOPs, or bytes again. seconds: undisturbed."""

    size: float
    amount: float
    seconds: float

    @property
    def rate(self) -> float:
        """Of the amount, a second."""
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """What kernels take on so many threads. By dtype of weights: dense products by rows, experts by
    rows of one of them. By dtype of the cache: reading it, by bytes. summing: bytes a second
    that can be summed up."""

    summing: float
    products: Mapping[str, tuple[KernelTime, ...]]
    experts: Mapping[str, tuple[KernelTime, ...]]
    attention: Mapping[str, tuple[KernelTime, ...]]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Medians of messages of `rows` rows there and back, in seconds. row_bytes: of hidden states.

    packing: the sender writes the message. unpacking: it adds up the reply.
    """

    rows: int
    row_bytes: int
    packing: float
    unpacking: float

    @property
    def moved_bytes(self) -> int:
        """As `AttentionStage.layer` counts them: read and written when packed; read, and read and
        written where they are added."""
        return 5 * self.rows * self.row_bytes

    @property
    def moving(self) -> float:
        """Seconds of both."""
        return self.packing + self.unpacking


@dataclass(frozen=True, slots=True)
class HostWork:
    """Seconds of one layer on an attention node and on an expert node, of one message between them
    (from the beginning of its send), and of all else by step, and by step and sequence. awake: for
    how long a node looks for a message before it sleeps. waking: that one takes longer which finds
    it asleep."""

    attention_layer: float
    expert_layer: float
    transfer: float
    step: float
    sequence: float
    awake: float = math.inf
    waking: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds of a layer on an attention node and on an expert node, under so many rows of as long
    contexts; step: of all layers and all else. dispatch, reply: of a message to an expert node and
    to an attention node that waited for it, from the beginning of its send; 0 where none did."""

    rows: int
    context: float
    attention: float
    experts: float
    step: float
    dispatch: float = 0.0
    reply: float = 0.0
