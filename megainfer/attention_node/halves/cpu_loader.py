"""Weights of an attention half, packed for the C++ kernels."""

import torch
from torch import Tensor

from megainfer.attention_node.halves.half import HalfSource
from megainfer.kernels.cpu.attention import AttentionKernel
from megainfer.kernels.cpu.experts import CpuLayerExperts, ExpertKernel
from megainfer.kernels.cpu.packed import PackedLinear, PackedNorm, pack_norm
from megainfer.kernels.cpu.threads import Threads
from megainfer.kernels.experts import ExpertsShape
from megainfer.models.sources import Pieces


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

    def linear(
        self, weight: Pieces, bias: Pieces = (), order: Tensor | None = None
    ) -> PackedLinear:
        """order: int64 [outputs], which output of the checkpoint stands where; as it has them
        where None."""
        # From the checkpoint's own precision.
        narrow = self._weight_dtype == "bfloat16"
        dtype = torch.bfloat16 if narrow else torch.float32
        rows, added = self.source.reader.load(weight, dtype), self.maybe_vector(bias)
        if order is not None:
            rows, added = rows[order], None if added is None else added[order]
        return self.kernel.pack(rows, self._weight_dtype, added)

    def exact_linear(self, weight: Pieces) -> PackedLinear:
        """In the instance's dtype whatever other weights are kept in: it decides, not computes."""
        dtype = self.source.dtype
        name = str(dtype).removeprefix("torch.")
        return self.kernel.pack(self.source.reader.load(weight, dtype), name)

    def vector(self, pieces: Pieces) -> Tensor:
        """Rounded to the instance's dtype, as float32."""
        return self.source.reader.load(pieces, self.source.dtype).to(torch.float32)

    def norm(self, weight: Pieces, bias: Pieces) -> PackedNorm:
        """Of the residual stream."""
        spec = self.source.spec.norm
        offset = 1.0 if spec.unit_offset else 0.0
        return pack_norm(self.vector(weight) + offset, spec, self.maybe_vector(bias))

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
