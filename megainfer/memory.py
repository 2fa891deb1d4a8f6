"""How many bytes each part of an instance takes: arithmetic on a model's shape, dtypes and counts.

Pure: no torch, and no look at a machine. What fits into one is the plan's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megainfer.compute.selection import Precision
from megainfer.config import BLOCK_SIZE, DTYPE_BYTES
from megainfer.models.sources import attention_weight_bytes, sparse_attention_weights
from megainfer.models.spec import ModelSpec
from megainfer.sharing.budgets import Budgets

MIB = 2**20
NODE_BYTES, SUPERVISOR_BYTES, API_SERVER_BYTES = 200 * MIB, 250 * MIB, 150 * MIB
"""What processes take of their own before there is a model or a request: torch, most of it."""
GPU_NODE_BYTES = 2**30
"""The same of a node that computes on a GPU: CUDA's libraries, and pinned staging."""
TRYING_BYTES = 2**30
"""The most that the process takes which tries out grammars."""
INT8_BLOCK = 128
"""int8 weights that share a float32 scale."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What takes memory: (what, bytes) a line, in the order in which it is told."""

    lines: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        return sum(size for _, size in self.lines)

    def of(self, what: str) -> int:
        """Bytes of this line; 0 without one."""
        return sum(size for name, size in self.lines if name == what)

    def __add__(self, other: "Ledger") -> "Ledger":
        """Lines of the same name become one.

        >>> (Ledger((("weights", 3),)) + Ledger((("weights", 4), ("KV cache", 1)))).lines
        (('weights', 7), ('KV cache', 1))
        """
        names = dict.fromkeys(name for name, _ in (*self.lines, *other.lines))
        return Ledger(tuple((name, self.of(name) + other.of(name)) for name in names))

    def __mul__(self, nodes: int) -> "Ledger":
        """Of so many nodes alike."""
        return Ledger(tuple((name, nodes * size) for name, size in self.lines))


@dataclass(frozen=True, slots=True)
class Overhead:
    """What there is beside an instance's weights, caches and slots. budgets: of requests, None
    where none come from outside. servers: API servers. attention_nodes: each with so many bytes of
    grammar_memory. node_processes: nodes that are processes of their own; on_gpus: of these, those
    that compute on a GPU."""

    budgets: Budgets | None
    servers: int
    attention_nodes: int
    node_processes: int
    grammar_memory: int
    on_gpus: int = 0

    @property
    def ledger(self) -> Ledger:
        """The most that all of it takes."""
        nodes = (self.node_processes - self.on_gpus) * NODE_BYTES + self.on_gpus * GPU_NODE_BYTES
        return Ledger(
            (
                *self._requests(),
                ("trying grammars", max(self.servers, 1) * TRYING_BYTES),
                ("grammars", self.attention_nodes * self.grammar_memory),
                ("programs", SUPERVISOR_BYTES + nodes),
            )
        )

    def _requests(self) -> Iterator[tuple[str, int]]:
        if self.budgets is not None:
            yield "requests", self.budgets.request_memory
            yield "long texts", self.servers * self.budgets.encoding_memory
            yield "API servers", self.servers * API_SERVER_BYTES


def attention_node(
    spec: ModelSpec, precision: Precision, num_blocks: int, num_states: int
) -> Ledger:
    """One attention node with so many KV blocks, and room for so many recurrent states."""
    states = num_states * spec.state_bytes
    return Ledger(
        (
            ("weights", attention_bytes(spec, precision)),
            ("KV cache", num_blocks * kv_block_bytes(spec, precision)),
            *((("recurrent states", states),) if num_states else ()),
        )
    )


def expert_node(spec: ModelSpec, precision: Precision, num_experts: int, moving: int = 0) -> Ledger:
    """One expert node with so many experts of each layer, and so many on their way to it."""
    layer = len(spec.moe_layers) * expert_bytes(spec, precision)
    return Ledger(
        (
            ("weights", num_experts * layer),
            *((("experts on the move", moving * layer),) if moving else ()),
        )
    )


def kv_block_bytes(spec: ModelSpec, precision: Precision) -> int:
    """One block of the KV cache, in all layers."""
    return BLOCK_SIZE * spec.kv_bytes_per_token(DTYPE_BYTES[precision.dtype])


def attention_bytes(spec: ModelSpec, precision: Precision) -> int:
    """An attention node's weights; the table of embeddings stays in the dtype of computing,
    beside its packed copy where it is the head as well, and so does sparse attention."""
    table, every = spec.vocab_size * spec.hidden_size, attention_weight_bytes(spec, 1)
    sparse = sparse_attention_weights(spec)
    packed = (every if spec.tie_word_embeddings else every - table) - sparse
    unpacked = (table + sparse) * DTYPE_BYTES[precision.dtype]
    return unpacked + stored_bytes(packed, precision.attention_dtype)


def expert_bytes(spec: ModelSpec, precision: Precision) -> int:
    """One expert of one layer."""
    return stored_bytes(spec.expert_weight_bytes(1), precision.expert_dtype)


def stored_bytes(weights: int, dtype: str) -> int:
    """So many weights, scales included.

    >>> stored_bytes(256, "bfloat16"), stored_bytes(256, "int8")
    (512, 264)
    """
    if dtype == "int8":
        return weights + 4 * weights // INT8_BLOCK
    return weights * DTYPE_BYTES[dtype]
