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
from megainfer.memory import (
    AttentionWorkspace,
    Ledger,
    expert_workspace,
    gpu_graphs,
    gpu_process,
    kv_block_bytes,
)
from megainfer.models.spec import ModelSpec
from megainfer.ranks.layout import FLOAT_BYTES, ID_BYTES, NUMBER_BYTES, WEIGHT_BYTES
from megainfer.topology import WHOLE, Shard

CHANNEL_BYTES = 16 * 2**20
"""Of one of NCCL's communicators between two nodes, with one block of threads: an estimate."""
RANK_CHANNELS_BYTES = 96 * 2**20
"""Of NCCL's communicator of a node's ranks, for each other one, with 16 blocks of threads: an
estimate."""
KV_SHARE = 0.9
"""Of the memory that all else leaves, what the KV caches take at most unless told otherwise."""


@dataclass(frozen=True, slots=True)
class GpuNeeds:
    """What a process of a node takes of its GPU beside its weights and cache.

    geometry: of M2N with as many nodes as there may be, None where both roles are one process.
    groups: whether payloads travel by groups of NCCL, each of which takes memory, as what is sent
    from does; mixed: there are slots for all peers beside them.
    rows: of a micro-batch's step. sources: attention nodes that there may be. eager: no stage is
    recorded. logits: that a rank computes at a time, where several share the vocabulary.
    """

    spec: ModelSpec
    precision: Precision
    geometry: Geometry | None
    rows: int
    micro_batches: int
    sources: int
    max_num_seqs: int
    eager: bool
    groups: bool = False
    logits: int = 0
    mixed: bool = False

    def attention(self, gpu: NumberedGpu, shard: Shard = WHOLE) -> Ledger:
        """Of an attention node on this GPU, or a rank of it, of which the first has the ports;
        stages of ranks are not recorded."""
        own = gpu_process(self._attention_workspace(), shard.leads and self._payloads(True))
        if shard == WHOLE:
            return own + self._graphs(gpu)
        row = self.spec.hidden_size * DTYPE_BYTES[self.precision.dtype]
        given, made = row + NUMBER_BYTES, self.rows * row + FLOAT_BYTES * self.logits
        return own + _between_ranks(shard, self.rows * given, made)

    def experts(self, gpu: NumberedGpu, shard: Shard = WHOLE) -> Ledger:
        """Of an expert node on this GPU, or a rank of it."""
        own = gpu_process(self._expert_workspace(), shard.leads and self._payloads(False))
        own += self._graphs(gpu)
        if shard == WHOLE:
            return own
        rows = self.sources * self.rows
        row = self.spec.hidden_size * DTYPE_BYTES[self.precision.dtype]
        choices = self.spec.top_k * (ID_BYTES + WEIGHT_BYTES)
        return own + _between_ranks(shard, rows * (row + choices), rows * row)

    def colocated(self, gpu: NumberedGpu) -> Ledger:
        """Of a process with both roles."""
        workspace = self._attention_workspace() + self._expert_workspace()
        return gpu_process(workspace, 0) + self._graphs(gpu)

    def _payloads(self, is_attention: bool) -> int:
        """Of M2N."""
        geometry = self.geometry
        if geometry is None:
            return 0
        to_experts, replies = geometry.expert_payloads, geometry.attention_payloads
        own = replies if is_attention else to_experts
        if not self.groups:
            return own.bytes
        slots = own.bytes if self.mixed else 0
        peers = geometry.num_expert if is_attention else geometry.num_attention
        sent = (to_experts if is_attention else replies).stride * peers * self.micro_batches
        return slots + own.bytes + sent + 2 * peers * CHANNEL_BYTES

    def _graphs(self, gpu: NumberedGpu) -> Ledger:
        return Ledger() if self.eager else gpu_graphs(gpu.gpu.memory)

    def _attention_workspace(self) -> int:
        sampled = min(self.max_num_seqs, self.rows)
        workspace = AttentionWorkspace.of(self.spec, self.precision)
        return workspace.bytes(self.rows, self.micro_batches, sampled)

    def _expert_workspace(self) -> int:
        return expert_workspace(self.spec, self.precision, self.sources * self.rows)


def _between_ranks(shard: Shard, given: int, made: int) -> Ledger:
    """What a rank has there to tell and hear, each field in memory of its own. given: bytes of the
    rows that all compute. made: of what each makes of them, all of which the first rank has
    together."""
    peers = shard.ranks - 1 if shard.leads else 1
    results = shard.ranks if shard.leads else 1
    return Ledger((("between ranks", given + results * made + peers * RANK_CHANNELS_BYTES),))


def fitting_gpu_blocks(
    config: EngineConfig,
    spec: ModelSpec,
    precision: Precision,
    max_model_len: int,
    nodes: Sequence[tuple[NumberedGpu, Ledger]],
    caches: Sequence[NumberedGpu],
) -> int:
    """Blocks of one attention node's KV cache, which has room beside all else on each GPU.

    nodes: every process's GPU, and what it takes there beside its cache. caches: the GPUs of
    attention nodes' ranks, one GPU as often as it has such.

    Raises ConfigError where nodes, one request of `max_model_len` tokens, or the caches that were
    asked for don't fit.
    """
    block_bytes = kv_block_bytes(spec, precision, config.attn_tp)
    smallest = -(-max_model_len // BLOCK_SIZE)
    left = {gpu: _left(gpu, nodes) for gpu, _ in nodes}
    # Of a node: its ranks have equal parts of its cache, and no two of them one GPU.
    shares = [config.attn_tp * (left[gpu] // n) for gpu, n in Counter(caches).items()]
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
