"""How many bytes each part of an instance takes: arithmetic on a model's shape, dtypes and counts.

Pure: no torch, and no look at a machine. What fits into one is the plan's business.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megainfer.compute.selection import Precision
from megainfer.config import BLOCK_SIZE, DTYPE_BYTES
from megainfer.messages.routed_experts import ID_BYTES
from megainfer.models.sources import (
    FfnSources,
    attention_weight_bytes,
    layer_attention,
    sparse_attention_weights,
)
from megainfer.models.spec import CACHE_FORMATS, ModelSpec
from megainfer.sharing.budgets import Budgets
from megainfer.topology import WHOLE, Shard

MIB = 2**20
NODE_BYTES, SUPERVISOR_BYTES, API_SERVER_BYTES = 200 * MIB, 250 * MIB, 150 * MIB
"""What processes take of their own before there is a model or a request: torch, most of it."""
GIVEN_AT_ONCE = 2
"""Experts that an expert node gives others at a time; for each it holds a copy."""
GPU_NODE_BYTES = 2**30
"""The same of a node that computes on a GPU: CUDA's libraries, and pinned staging."""
CUDA_BYTES = 512 * MIB
"""What CUDA takes for a process that uses a GPU, its kernels' code included."""
LEAST_WORKSPACE_BYTES = 256 * MIB
"""cuBLAS's own, partial sums of attention over long contexts, and what lies between blocks of
torch's allocator."""
GRAPHS_SHARE = 0.02
"""Of a GPU's memory, for the CUDA graphs of one node."""
LOGIT_COPIES = 4
"""Logits, penalised, sorted, and their probabilities."""
TRYING_BYTES = 2**30
"""The most that the process takes which tries out grammars."""
QUANTISED = {
    "int8": (8, 4, 128),
    "int8_32": (8, 4, 32),
    "fp8": (8, 4, 128 * 128),
    "fp8_channel": (8, 4, 256),  # a scale an output, and hardly any has fewer inputs
    "mxfp4": (4, 1, 32),
    "int4": (4, 5, 32),
    "int4_128": (4, 5, 128),
}
"""On GPUs: bits of a code; bytes of scale and zero point, and how many weights share them."""
QUANTISED_ON_CPU = {
    **QUANTISED,
    "int4": (4, 4, 32),
    "int4_128": (4, 4, 128),
    "fp8": (8, 4, 128),
    "fp8_channel": (8, 4, 128),
}
"""The same of the CPU kernels."""


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

    def share(self, some: int, of_all: int) -> "Ledger":
        """What some of so many ranks take, that take as much each.

        >>> Ledger((("weights", 7),)).share(1, 2).lines
        (('weights', 4),)
        """
        return Ledger(tuple((name, -(-size * some // of_all)) for name, size in self.lines))


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
    spec: ModelSpec,
    precision: Precision,
    num_blocks: int,
    num_states: int,
    shards: Sequence[Shard] = (WHOLE,),
) -> Ledger:
    """One attention node, or these of its ranks together, with so many KV blocks, and room for so
    many recurrent states."""
    count, ranks = len(shards), shards[0].ranks
    states = num_states * spec.state_bytes * count // ranks
    block = kv_block_bytes(spec, precision, ranks) * count // ranks
    return Ledger(
        (
            ("weights", attention_bytes(spec, precision, shards)),
            ("KV cache", num_blocks * block),
            *((("recurrent states", states),) if num_states else ()),
        )
    )


def expert_node(
    spec: ModelSpec,
    precision: Precision,
    num_experts: int,
    moving: int = 0,
    *,
    on_gpu: bool = True,
    ranks: int = 1,
) -> Ledger:
    """One expert node with so many experts of each layer, and so many on their way to it; ranks:
    that share them evenly, of which this is one."""
    layer = len(spec.moe_layers) * expert_bytes(spec, precision, on_gpu=on_gpu) // ranks
    return Ledger(
        (
            ("weights", num_experts * layer),
            *((("experts on the move", moving * layer),) if moving else ()),
        )
    )


def handed_over(spec: ModelSpec, precision: Precision, *, on_gpu: bool) -> Ledger:
    """What an expert node takes of its host's memory, wherever it computes, to give others experts
    and to be given one itself."""
    copies = GIVEN_AT_ONCE + 1
    return Ledger((("experts handed over", copies * expert_bytes(spec, precision, on_gpu=on_gpu)),))


def gpu_process(workspace: int, slots: int) -> Ledger:
    """What a process of a node takes of its GPU beside weights and caches. slots: bytes of M2N's
    payloads."""
    lines = (("CUDA", CUDA_BYTES), ("workspace", LEAST_WORKSPACE_BYTES + workspace))
    return Ledger((*lines, *((("M2N", slots),) if slots else ())))


def gpu_graphs(gpu_memory: int) -> Ledger:
    """Recorded stages of a node on a GPU with so much memory."""
    return Ledger((("graphs", int(GRAPHS_SHARE * gpu_memory)),))


@dataclass(frozen=True, slots=True)
class AttentionWorkspace:
    """What an attention node's steps need beside weights and caches. widest: outputs of the widest
    weight. element_bytes: of the dtype of computing."""

    hidden_size: int
    vocab_size: int
    widest: int
    element_bytes: int

    @classmethod
    def of(cls, spec: ModelSpec, precision: Precision) -> "AttentionWorkspace":
        element_bytes = DTYPE_BYTES[precision.dtype]
        return cls(spec.hidden_size, spec.vocab_size, _widest(spec), element_bytes)

    def bytes(self, rows: int, micro_batches: int, sampled: int) -> int:
        """Of steps of so many rows: each micro-batch's residual stream and what its experts see;
        one step's projections, four as wide as the widest weight; and the logits of all that
        sample."""
        kept = 2 * micro_batches * self.hidden_size
        step = 4 * self.hidden_size + 4 * self.widest
        logits = LOGIT_COPIES * 4 * sampled * self.vocab_size
        return rows * (kept + step) * self.element_bytes + logits


def expert_workspace(spec: ModelSpec, precision: Precision, rows: int) -> int:
    """Of a batch of all attention nodes' rows: of each choice gate, up, their product, and a
    float32 row to be summed."""
    size = DTYPE_BYTES[precision.dtype]
    choice = 3 * spec.expert.intermediate * size + 4 * spec.hidden_size
    return rows * (spec.top_k * choice + spec.hidden_size * size)


def _widest(spec: ModelSpec) -> int:
    """Of all that a layer's weights on an attention node give."""
    return max(
        source.shape[0]
        for layer in range(len(spec.layers))
        for source in (
            *layer_attention(spec, layer).all(),
            *FfnSources(spec, layer).attention_side(),
        )
    )


def kv_block_bytes(spec: ModelSpec, precision: Precision, ranks: int = 1) -> int:
    """One block of the KV cache, in all layers of so many ranks together: what several have alike
    counts as often."""
    layers, kept = (layer.attention for layer in spec.layers), CACHE_FORMATS[precision.cache_dtype]
    a_rank = sum(attention.of_rank(ranks).cached_bytes(kept) for attention in layers)
    return BLOCK_SIZE * ranks * a_rank


def routing_bytes(spec: ModelSpec) -> int:
    """What the gates choose for a token, in all layers."""
    return len(spec.moe_layers) * spec.top_k * ID_BYTES


def attention_bytes(
    spec: ModelSpec, precision: Precision, shards: Sequence[Shard] = (WHOLE,)
) -> int:
    """The weights of an attention node, or of these of its ranks together; the table of embeddings
    stays in the dtype of computing, beside its packed copy where it is the head as well, and so
    does sparse attention."""
    tokens = sum(end - first for first, end in (shard.about(spec.vocab_size) for shard in shards))
    table, every = tokens * spec.hidden_size, attention_weight_bytes(spec, 1, shards)
    sparse = sparse_attention_weights(spec)
    packed = (every if spec.tie_word_embeddings else every - table) - sparse
    unpacked = (table + sparse) * DTYPE_BYTES[precision.dtype]
    return unpacked + stored_bytes(packed, precision.attention_dtype, on_gpu=False)


def expert_bytes(spec: ModelSpec, precision: Precision, *, on_gpu: bool = True) -> int:
    """One expert of one layer."""
    return stored_bytes(spec.expert_weight_bytes(1), precision.expert_dtype, on_gpu=on_gpu)


def stored_bytes(weights: int, dtype: str, *, on_gpu: bool = True) -> int:
    """So many weights, scales included.

    >>> stored_bytes(256, "bfloat16"), stored_bytes(256, "int8")
    (512, 264)
    """
    if dtype in QUANTISED:
        bits, beside, shared = (QUANTISED if on_gpu else QUANTISED_ON_CPU)[dtype]
        return weights * bits // 8 + beside * weights // shared
    return weights * DTYPE_BYTES[dtype]
