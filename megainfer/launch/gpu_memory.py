"""What nodes take of a GPU's memory, and how large their KV caches may be there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.compute.selection import Precision
from megainfer.config import BLOCK_SIZE, DTYPE_BYTES, EngineConfig, format_bytes
from megainfer.errors import ConfigError
from megainfer.launch.devices import NumberedGpu
from megainfer.launch.fit import check_one_request_fits
from megainfer.m2n.geometry import Geometry
from megainfer.memory import MIB, Ledger, kv_block_bytes
from megainfer.models.sources import FfnSources, layer_attention
from megainfer.models.spec import ModelSpec

CONTEXT_BYTES = 512 * MIB
"""What CUDA takes for a process that uses a GPU, its kernels' code included."""
LEAST_WORKSPACE_BYTES = 256 * MIB
"""cuBLAS's own, partial sums of attention over long contexts, and what lies between blocks of
torch's allocator."""
GRAPHS_SHARE = 0.02
"""Of a GPU's memory, for the CUDA graphs of one node."""
KV_SHARE = 0.9
"""Of the memory that all else leaves, what the KV caches take at most unless told otherwise."""
LOGIT_COPIES = 4
"""Logits, penalised, sorted, and their probabilities."""


@dataclass(frozen=True, slots=True)
class GpuNeeds:
    """What a node on a GPU takes there beside its weights and cache.

    geometry: of M2N with as many nodes as there may be, None where both roles are one process.
    rows: of a micro-batch's step. sources: attention nodes that there may be.
    """

    spec: ModelSpec
    precision: Precision
    geometry: Geometry | None
    rows: int
    micro_batches: int
    sources: int
    max_num_seqs: int

    def attention(self, gpu: NumberedGpu) -> Ledger:
        """Of an attention node on this GPU."""
        slots = 0 if self.geometry is None else self.geometry.attention_payloads.bytes
        return self._ledger(gpu, self._attention_workspace(), slots)

    def experts(self, gpu: NumberedGpu) -> Ledger:
        """Of an expert node on this GPU."""
        slots = 0 if self.geometry is None else self.geometry.expert_payloads.bytes
        return self._ledger(gpu, self._expert_workspace(), slots)

    def colocated(self, gpu: NumberedGpu) -> Ledger:
        """Of a process with both roles."""
        return self._ledger(gpu, self._attention_workspace() + self._expert_workspace(), 0)

    def _ledger(self, gpu: NumberedGpu, workspace: int, slots: int) -> Ledger:
        lines = (
            ("CUDA", CONTEXT_BYTES),
            ("workspace", LEAST_WORKSPACE_BYTES + workspace),
            *((("M2N", slots),) if slots else ()),
            ("graphs", int(GRAPHS_SHARE * gpu.gpu.memory)),
        )
        return Ledger(lines)

    def _attention_workspace(self) -> int:
        """Each micro-batch's residual stream and what its experts see; one step's projections, four
        as wide as the widest weight; and the logits of all that sample."""
        spec, size = self.spec, DTYPE_BYTES[self.precision.dtype]
        kept = 2 * self.micro_batches * spec.hidden_size
        step = 4 * spec.hidden_size + 4 * _widest(spec)
        logits = LOGIT_COPIES * 4 * min(self.max_num_seqs, self.rows) * spec.vocab_size
        return self.rows * (kept + step) * size + logits

    def _expert_workspace(self) -> int:
        """A batch of all attention nodes' rows: of each choice gate, up, their product, and a
        float32 row to be summed."""
        spec, size = self.spec, DTYPE_BYTES[self.precision.dtype]
        choice = 3 * spec.expert.intermediate * size + 4 * spec.hidden_size
        return self.sources * self.rows * (spec.top_k * choice + spec.hidden_size * size)


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


def fitting_gpu_blocks(
    config: EngineConfig,
    spec: ModelSpec,
    precision: Precision,
    max_model_len: int,
    nodes: Sequence[tuple[NumberedGpu, Ledger]],
    caches: Sequence[NumberedGpu],
) -> int:
    """Blocks of one attention node's KV cache, which has room beside all else on each GPU.

    nodes: every node's GPU, and what it takes there beside its cache. caches: the attention nodes'
    GPUs, one GPU as often as it has such nodes.

    Raises ConfigError where nodes, one request of `max_model_len` tokens, or the caches that were
    asked for don't fit.
    """
    block_bytes = kv_block_bytes(spec, precision)
    smallest = -(-max_model_len // BLOCK_SIZE)
    left = {gpu: _left(gpu, nodes) for gpu, _ in nodes}
    shares = [left[gpu] // count for gpu, count in Counter(caches).items()]
    if config.kv_cache_memory is None:
        blocks = min(int(KV_SHARE * min(shares)) // block_bytes, smallest * config.max_num_seqs)
    else:
        blocks = config.kv_cache_memory // block_bytes
        if config.kv_cache_memory > min(shares):
            raise ConfigError(
                f"--kv-cache-memory of {format_bytes(config.kv_cache_memory)} doesn't fit: GPUs "
                f"have {format_bytes(min(shares))} left for each attention node; use "
                f"--kv-cache-memory {min(shares)} or less"
            )
    check_one_request_fits(blocks, smallest, block_bytes, max_model_len)
    return blocks


def check_gpus_fit(nodes: Sequence[tuple[NumberedGpu, Ledger]]) -> None:
    """Raises ConfigError where nodes take more of a GPU than is free there."""
    for gpu in dict(nodes):
        _left(gpu, nodes)


def _left(gpu: NumberedGpu, nodes: Sequence[tuple[NumberedGpu, Ledger]]) -> int:
    """Bytes that these nodes leave free on this GPU."""
    own = [ledger for place, ledger in nodes if place == gpu]
    taken = sum(own, start=Ledger())
    left = gpu.gpu.free_memory - taken.total
    if left < 0:
        lines = ", ".join(f"{what} of {format_bytes(size)}" for what, size in taken.lines)
        raise ConfigError(
            f"{gpu} has {format_bytes(gpu.gpu.free_memory)} free, but {len(own)} "
            f"node{'s' * (len(own) > 1)} there need {format_bytes(taken.total)}: {lines}; use more "
            "GPUs, --ffn-device cpu, a smaller --max-num-batched-tokens or a smaller model"
        )
    return left
