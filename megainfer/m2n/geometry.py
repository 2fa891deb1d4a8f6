"""The sizes that all nodes of an instance agree on, and where the bytes of a slot lie.

Pure arithmetic. A slot is a line with its sequence word, a line with the header, and the payload:

    dispatch: hidden [R, D] | local expert ids [R, K] int32 | weights [R, K] float32 (| count)
    reply:    sums   [R, D]                                  (or the text of an error)

The count, int32 [1], is there where payloads are on a device, whose rows no host need have counted.

Each part starts on a line of 64 bytes, and parts are packed by the message's own R, so that a
message is one run of bytes and a small one touches few pages.

A node's region is its slots and a last line, whose first word says whether the node is awake. Where
payloads are elsewhere, its slots are two lines each, and room for the text of an error in a reply.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from megainfer.errors import ConfigError

LINE_BYTES = 64
ERROR_ROOM_BYTES = 1024  # a reply slot holds an error of this size, however small its rows are
DTYPE_CODES = {"float32": 1, "bfloat16": 2, "float16": 3}  # name -> code on the wire
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PAYLOAD_CODES = {"host": 1, "device": 2}  # whose memory holds payloads -> code on the wire
_ID_BYTES = _WEIGHT_BYTES = 4
_MAX_FIELD = 2**32 - 1  # every size travels as a uint32


def aligned(num_bytes: int) -> int:
    """`num_bytes`, rounded up to whole lines."""
    return -(-num_bytes // LINE_BYTES) * LINE_BYTES


class PayloadRoom(NamedTuple):
    """What a node owns of its device's memory: a payload of `stride` bytes for each slot."""

    slots: int
    stride: int

    @property
    def bytes(self) -> int:
        return self.slots * self.stride


@dataclass(frozen=True, slots=True)
class Geometry:
    """M attention nodes, N expert nodes, m micro-batches, and the shape of their messages.

    capacity: the most rows of one message, that is, the token limit of one micro-batch's step.
    dtype: "float32", "bfloat16" or "float16", of hidden states and replies. payloads: "host" where
    they are in the nodes' regions, "device" where each node has them in its device's memory.
    """

    num_attention: int
    num_expert: int
    micro_batches: int
    capacity: int
    hidden_size: int
    top_k: int
    dtype: str
    payloads: str = "host"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_CODES:
            known = ", ".join(DTYPE_CODES)
            raise ConfigError(f"M2N cannot carry dtype {self.dtype!r}; it can carry {known}")
        assert self.payloads in PAYLOAD_CODES, self.payloads
        for field in fields(self)[:-2]:
            value = getattr(self, field.name)
            if not 1 <= value <= _MAX_FIELD:
                raise ConfigError(f"M2N needs {field.name} in 1..{_MAX_FIELD}, not {value}")

    @property
    def dtype_code(self) -> int:
        return DTYPE_CODES[self.dtype]

    @property
    def payload_code(self) -> int:
        return PAYLOAD_CODES[self.payloads]

    @property
    def on_devices(self) -> "Geometry":
        """The same sizes with payloads in devices' memory."""
        return replace(self, payloads="device")

    def rows_bytes(self, rows: int) -> int:
        """Bytes of [rows, D], whole lines."""
        return aligned(rows * self.hidden_size * DTYPE_BYTES[self.dtype])

    def ids_offset(self, rows: int) -> int:
        """Where the local expert ids begin in a dispatch's payload."""
        return self.rows_bytes(rows)

    def weights_offset(self, rows: int) -> int:
        """Where the weights begin in a dispatch's payload."""
        return self.ids_offset(rows) + aligned(rows * self.top_k * _ID_BYTES)

    def count_offset(self, rows: int) -> int:
        """Where the count begins, if there is one."""
        return self.weights_offset(rows) + aligned(rows * self.top_k * _WEIGHT_BYTES)

    def dispatch_bytes(self, rows: int) -> int:
        """Payload of a dispatch of `rows` rows."""
        counted = rows > 0 and self.payloads == "device"
        return self.count_offset(rows) + (LINE_BYTES if counted else 0)

    def reply_bytes(self, rows: int) -> int:
        """Payload of a reply of `rows` rows."""
        return self.rows_bytes(rows)

    @property
    def error_room(self) -> int:
        """The most bytes of an error's text, in UTF-8; it is in the host's memory everywhere."""
        if self.payloads == "device":
            return ERROR_ROOM_BYTES
        return max(self.reply_bytes(self.capacity), ERROR_ROOM_BYTES)

    @property
    def dispatch_slot_bytes(self) -> int:
        payload = self.dispatch_bytes(self.capacity) if self.payloads == "host" else 0
        return 2 * LINE_BYTES + payload

    @property
    def reply_slot_bytes(self) -> int:
        return 2 * LINE_BYTES + self.error_room

    @property
    def expert_region_bytes(self) -> int:
        """What one expert node owns: a dispatch slot an attention node and micro-batch, and the
        line that says whether it is awake."""
        return self.num_attention * self.micro_batches * self.dispatch_slot_bytes + LINE_BYTES

    @property
    def attention_region_bytes(self) -> int:
        """What one attention node owns: a reply slot an expert node and micro-batch, and the line
        that says whether it is awake."""
        return self.num_expert * self.micro_batches * self.reply_slot_bytes + LINE_BYTES

    @property
    def expert_payloads(self) -> PayloadRoom:
        """What one expert node owns on its device, if payloads are there."""
        return PayloadRoom(
            self.num_attention * self.micro_batches, self.dispatch_bytes(self.capacity)
        )

    @property
    def attention_payloads(self) -> PayloadRoom:
        """What one attention node owns on its device, if payloads are there."""
        return PayloadRoom(self.num_expert * self.micro_batches, self.reply_bytes(self.capacity))

    @property
    def attention_bytes(self) -> int:
        """What one attention node owns, in whichever memory."""
        elsewhere = self.attention_payloads.bytes if self.payloads == "device" else 0
        return self.attention_region_bytes + elsewhere

    @property
    def expert_bytes(self) -> int:
        """What one expert node owns, in whichever memory."""
        elsewhere = self.expert_payloads.bytes if self.payloads == "device" else 0
        return self.expert_region_bytes + elsewhere

    @property
    def total_bytes(self) -> int:
        """Slots of the whole instance, in the host's memory."""
        attention = self.num_attention * self.attention_region_bytes
        return attention + self.num_expert * self.expert_region_bytes
