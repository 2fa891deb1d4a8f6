"""The attention node's half of a model in C++: two or three calls a layer, float32 inside."""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from megainfer.attention_node.batch import StepBatch
from megainfer.attention_node.half import HalfSource, Routed
from megainfer.attention_node.reference_half import rotary_tables
from megainfer.errors import ConfigError
from megainfer.kernels.cpu.attention import (
    BLOCK_TOKENS,
    AttentionKernel,
    Chosen,
    PackedAttention,
    PackedGate,
    PackedLinear,
    block_shape,
    pack_attention,
    pack_gate,
    step_rows,
)
from megainfer.kernels.cpu.experts import CpuLayerExperts, ExpertKernel
from megainfer.kernels.cpu.threads import Threads, own_or_shared
from megainfer.kernels.drawing import TokenKernels
from megainfer.kernels.experts import ExpertsShape
from megainfer.m2n.mailbox import Part
from megainfer.models.source import Pieces
from megainfer.models.sources import AttentionSources, FfnSources, ModelSources
from megainfer.models.spec import AttentionSpec, DenseSpec, MoESpec, QkNorm


class Loader:
    """Weights of the checkpoint, packed for the kernel.

    weight_dtype: of projections and of networks; norms and biases are float32, the router and the
    shared expert's gate in the instance's dtype.
    """

    def __init__(
        self, source: HalfSource, kernel: AttentionKernel, weight_dtype: str, threads: Threads
    ) -> None:
        self.source = source
        self.kernel = kernel
        self._weight_dtype = weight_dtype
        self._threads = threads
        self._networks: dict[int, ExpertKernel] = {}  # by intermediate size

    def linear(self, weight: Pieces, bias: Pieces = ()) -> PackedLinear:
        # From the checkpoint's own precision.
        narrow = self._weight_dtype == "bfloat16"
        dtype = torch.bfloat16 if narrow else torch.float32
        return self.kernel.pack(
            self.source.reader.load(weight, dtype), self._weight_dtype, self.maybe_vector(bias)
        )

    def exact_linear(self, weight: Pieces) -> PackedLinear:
        """In the instance's dtype whatever other weights are kept in: it decides, not computes."""
        dtype = self.source.dtype
        name = str(dtype).removeprefix("torch.")
        return self.kernel.pack(self.source.reader.load(weight, dtype), name)

    def vector(self, pieces: Pieces) -> Tensor:
        """Rounded to the instance's dtype, as float32."""
        return self.source.reader.load(pieces, self.source.dtype).to(torch.float32)

    def maybe_vector(self, pieces: Pieces) -> Tensor | None:
        return self.vector(pieces) if pieces else None

    def network(self, intermediate: int, gate_up: Pieces, down: Pieces) -> CpuLayerExperts:
        """A SwiGLU network, as the only expert of its layer."""
        kernel = self._networks.get(intermediate)
        if kernel is None:
            shape = ExpertsShape(1, self.source.spec.hidden_size, intermediate, 1)
            kernel = ExpertKernel(shape, self._weight_dtype, self._threads, self.kernel.level)
            self._networks[intermediate] = kernel
        network = CpuLayerExperts(kernel)
        reader = self.source.reader
        network.load(0, reader.load(gate_up, torch.float32), reader.load(down, torch.float32))
        return network


class Dense:
    """A whole feed-forward half without experts, its input norm included."""

    def __init__(self, spec: DenseSpec, sources: FfnSources, loader: Loader) -> None:
        self._kernel = loader.kernel
        self._eps = sources.spec.norm_eps
        self._norm = loader.vector(sources.norm())
        self._network = loader.network(
            spec.intermediate, sources.dense_gate_up(spec), sources.dense_down(spec)
        )

    def add(self, x: Tensor) -> None:
        hidden = self._kernel.norm(x, self._norm, self._eps)
        x += _network_output(self._network, hidden, torch.ones(len(x), 1))


class SharedExpert:
    """The expert that every token visits, scaled by a sigmoid gate: its weight."""

    def __init__(
        self, intermediate: int, spec: MoESpec, sources: FfnSources, loader: Loader
    ) -> None:
        self._kernel = loader.kernel
        self._gate = loader.exact_linear(sources.shared_gate(spec))
        self._network = loader.network(
            intermediate, sources.shared_gate_up(spec), sources.shared_down(spec)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [T, D]."""
        weights = self._kernel.sigmoid_(self._kernel.linear(self._gate, hidden.to(torch.float32)))
        return _network_output(self._network, hidden, weights)


class Gate:
    """Norm, router and plan of a layer with experts."""

    def __init__(self, spec: MoESpec, sources: FfnSources, loader: Loader) -> None:
        self._kernel = loader.kernel
        self._dtype = loader.source.dtype
        self.packed = _pack_gate(spec, sources, loader)

    def forward(self, x: Tensor) -> Routed:
        hidden = torch.empty(x.shape, dtype=self._dtype)
        chosen = self._kernel.gate(self.packed, x, hidden)
        return Routed(hidden, _parts(chosen))


class CpuLayer:
    """`half.LayerHalf` over packed weights."""

    def __init__(self, loader: Loader, layer: int, rotary: Tensor) -> None:
        spec = loader.source.spec
        self._kernel = loader.kernel
        attention = spec.layers[layer].attention
        self._block_shape = block_shape(attention.num_kv_heads, attention.head_dim)
        self._attention = _pack_attention(AttentionSources(spec, layer), loader, rotary)
        ffn, sources = spec.layers[layer].ffn, FfnSources(spec, layer)
        self._dense = self._gate = self._shared = None
        if isinstance(ffn, DenseSpec):
            self._dense = Dense(ffn, sources, loader)
        else:
            self._gate = Gate(ffn, sources, loader)
            if ffn.shared is not None:
                self._shared = SharedExpert(ffn.shared.intermediate, ffn, sources, loader)

    @property
    def plain_routing(self) -> tuple[PackedAttention, PackedGate] | None:
        """What comes before the experts, where there is nothing else beside them."""
        if self._gate is None or self._shared is not None:
            return None
        return self._attention, self._gate.packed

    def cache_shapes(self, block_size: int) -> tuple[tuple[int, ...], ...]:
        """See `half.LayerHalf.cache_shapes`. Raises ConfigError for blocks of another size."""
        if block_size != BLOCK_TOKENS:
            raise ConfigError(
                f"the CPU kernels need KV blocks of {BLOCK_TOKENS} tokens, not of {block_size}"
            )
        return (self._block_shape,)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        (cache,) = caches
        step = step_rows(batch.positions, batch.slots, batch.row_starts, batch.block_table)
        self._kernel.attend(self._attention, step, cache, x)

    def feed_forward(self, x: Tensor) -> Routed | None:
        """See `half.LayerHalf.feed_forward`."""
        if self._dense is not None:
            self._dense.add(x)
        return None if self._gate is None else self._gate.forward(x)

    def shared(self, hidden: Tensor) -> Tensor | None:
        """See `half.LayerHalf.shared`."""
        return None if self._shared is None else self._shared.forward(hidden)


class CpuHalf:
    """`half.ModelHalf` over packed weights; the residual stream is float32.

    weight_dtype: float32, bfloat16 or int8. level: an instruction set, the best unless given.
    """

    def __init__(
        self,
        source: HalfSource,
        weight_dtype: str,
        threads: Threads | int = 1,
        level: str | None = None,
    ) -> None:
        spec, sources = source.spec, ModelSources(source.spec)
        shared = own_or_shared(threads)
        self.kernel = AttentionKernel(shared, level)
        loader = Loader(source, self.kernel, weight_dtype, shared)
        self._eps = spec.norm_eps
        self._embedding = source.reader.load(sources.embedding(), source.dtype)
        self._final_norm = loader.vector(sources.final_norm())
        head = sources.lm_head()
        self._lm_head = (
            loader.linear(head) if head else self.kernel.pack(self._embedding, weight_dtype)
        )
        rotary = rotary_tables(spec, source.max_positions, torch.float32)
        self.layers = [
            CpuLayer(loader, index, rotary[layer.attention])
            for index, layer in enumerate(spec.layers)
        ]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `half.ModelHalf.embed`."""
        return embedding(token_ids, self._embedding).to(torch.float32)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `half.ModelHalf.logits`."""
        return self.kernel.head(self._lm_head, self._final_norm, self._eps, x, rows)

    @property
    def tokens(self) -> TokenKernels:
        """See `half.ModelHalf.tokens`."""
        return self.kernel


def _pack_attention(sources: AttentionSources, loader: Loader, rotary: Tensor) -> PackedAttention:
    spec: AttentionSpec = sources.attention
    q_norm, k_norm = loader.maybe_vector(sources.q_norm()), loader.maybe_vector(sources.k_norm())
    return pack_attention(
        loader.linear(sources.qkv(), sources.qkv_bias()),
        loader.linear(sources.out(), sources.out_bias()),
        loader.vector(sources.norm()),
        None if q_norm is None or k_norm is None else (q_norm, k_norm),
        rotary,
        heads=(spec.num_heads, spec.num_kv_heads),
        head_dim=spec.head_dim,
        eps=sources.spec.norm_eps,
        clip=spec.clip_qkv,
        norm_each_head=spec.qk_norm is QkNorm.HEAD,
    )


def _pack_gate(spec: MoESpec, sources: FfnSources, loader: Loader) -> PackedGate:
    homes = loader.source.homes
    return pack_gate(
        loader.exact_linear(sources.router(spec)),
        loader.vector(sources.norm()),
        (homes.node, homes.local_id),
        homes.num_nodes,
        top_k=spec.router.top_k,
        eps=sources.spec.norm_eps,
        normalise=spec.router.normalise,
        weight_dtype=loader.source.dtype if spec.router.rounded else torch.float32,
    )


def _parts(chosen: Chosen) -> tuple[Part, ...]:
    return tuple(
        Part(chosen.rows[node, :count], chosen.ids[node, :count], chosen.weights[node, :count])
        for node, count in enumerate(chosen.counts)
    )


def _network_output(network: CpuLayerExperts, hidden: Tensor, weights: Tensor) -> Tensor:
    """The network's output for hidden [T, D], each row times its weight, float32 [T, 1]."""
    out = torch.empty_like(hidden)
    everyone = torch.zeros(len(hidden), 1, dtype=torch.int32)
    network.forward([hidden], [everyone], [weights], [out])
    return out
