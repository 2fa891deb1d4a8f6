"""Weights of an attention half, packed for the C++ kernels."""

from functools import cached_property

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.delta_net import DeltaNetKernel
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.cpu.kernels.latent import LatentKernel
from megainfer.compute.cpu.kernels.packed import PackedLinear, PackedNorm, pack_norm
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.half import HalfSource
from megainfer.models.sources import Pieces
from megainfer.models.spec import ActivationSpec


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
        self.weight_dtype = weight_dtype
        self._threads = threads
        self._networks: dict[tuple[int, ActivationSpec], ExpertKernel] = {}

    def linear(
        self, weight: Pieces, bias: Pieces = (), order: Tensor | None = None
    ) -> PackedLinear:
        """order: int64 [outputs], which output of the checkpoint stands where; as it has them
        where None."""
        rows, added = self.matrix(weight), self.maybe_vector(bias)
        if order is not None:
            rows, added = rows[order], None if added is None else added[order]
        return self.kernel.pack(rows, self.weight_dtype, added)

    def matrix(self, weight: Pieces) -> Tensor:
        """What `linear` packs: from the checkpoint's own precision."""
        narrow = self.weight_dtype == "bfloat16"
        return self.source.reader.load(weight, torch.bfloat16 if narrow else torch.float32)

    @cached_property
    def latent_kernel(self) -> LatentKernel:
        """One for all layers."""
        return LatentKernel(self.kernel, self._threads)

    @cached_property
    def recurrence(self) -> DeltaNetKernel:
        """Of all layers with a recurrent state."""
        return DeltaNetKernel(self._threads, self.kernel.level)

    def exact_linear(
        self, weight: Pieces, bias: Pieces = (), dtype: torch.dtype | None = None
    ) -> PackedLinear:
        """In this dtype, the instance's unless given, whatever other weights are kept in: it
        decides, not computes."""
        kept = self.source.dtype if dtype is None else dtype
        name = str(kept).removeprefix("torch.")
        return self.kernel.pack(
            self.source.reader.load(weight, kept), name, self.maybe_vector(bias, kept)
        )

    def vector(self, pieces: Pieces, dtype: torch.dtype | None = None) -> Tensor:
        """Rounded to this dtype, the instance's unless given, as float32."""
        kept = self.source.dtype if dtype is None else dtype
        return self.source.reader.load(pieces, kept).to(torch.float32)

    def norm(self, weight: Pieces, bias: Pieces) -> PackedNorm:
        """Of the residual stream."""
        spec = self.source.spec.norm
        offset = 1.0 if spec.unit_offset else 0.0
        return pack_norm(self.vector(weight) + offset, spec, self.maybe_vector(bias))

    def maybe_vector(self, pieces: Pieces, dtype: torch.dtype | None = None) -> Tensor | None:
        return self.vector(pieces, dtype) if pieces else None

    def network(
        self, intermediate: int, activation: ActivationSpec, gate_up: Pieces, down: Pieces
    ) -> CpuLayerExperts:
        """A gated network, as the only expert of its layer."""
        kernel = self._networks.get((intermediate, activation))
        if kernel is None:
            shape = ExpertsShape(1, self.source.spec.hidden_size, intermediate, 1, activation)
            kernel = ExpertKernel(shape, self.weight_dtype, self._threads, self.kernel.level)
            self._networks[intermediate, activation] = kernel
        network = CpuLayerExperts(kernel, 1)
        reader = self.source.reader
        weights = reader.load(gate_up, torch.float32), reader.load(down, torch.float32)
        network.put(0, network.prepare(*weights))
        return network
