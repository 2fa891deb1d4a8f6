"""One layer's routed experts with packed weights."""

import mmap
import weakref
from collections.abc import Sequence
from ctypes import addressof, c_void_p
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.threads import Threads, own_or_shared
from megainfer.compute.experts import Biases, ExpertsShape, bytes_of, fill_with
from megainfer.errors import CheckpointError, ConfigError
from megainfer.models.spec import Activation

FORMATS = {
    "float32": 0,
    "bfloat16": 1,
    "int8": 2,
    "int4": 3,
    "int4_128": 4,
    "mxfp4": 5,
    "fp8": 6,
    "fp8_channel": 6,
    "int8_32": 7,
}
"""`WeightFormat` of level.h."""
_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}
_ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class ExpertKernel:
    """The C++ object that packs and computes experts of one shape; it owns scratch.

    weight_dtype: of `config.WEIGHT_DTYPES`. level: an instruction set of `library.levels()`, the
    best unless given. threads: shared with other kernels, or how many to have. One caller at a
    time.

    Raises ConfigError when the library isn't built or can't run the level here.
    """

    def __init__(
        self,
        shape: ExpertsShape,
        weight_dtype: str,
        threads: Threads | int = 1,
        level: str | None = None,
    ) -> None:
        native = library.load()
        self._threads = own_or_shared(threads)
        self.shape = shape
        self.weight_dtype = weight_dtype
        self.level = level or library.levels()[-1]
        self._native = native
        self._counts = torch.zeros(shape.experts, dtype=torch.int64)
        self.free_memory: list[PackedExpert] = []  # for experts of any layer
        self.handle = native.megainfer_experts_new(
            self.level.encode(),
            _format(weight_dtype),
            _native_shape(shape),
            self._threads.handle,
        )
        if self.handle is None:
            raise ConfigError(
                f"kernels of level {self.level!r} don't run here; use one of "
                f"{', '.join(library.levels())}"
            )
        weakref.finalize(self, native.megainfer_experts_delete, self.handle)
        self.gate_up_bytes: int = native.megainfer_experts_gate_up_bytes(self.handle)
        self.down_bytes: int = native.megainfer_experts_down_bytes(self.handle)
        self.gate_up_channels: int = native.megainfer_experts_gate_up_channels(self.handle)

    def pack(self, gate_up: Tensor, down: Tensor, to_gate_up: Tensor, to_down: Tensor) -> None:
        """Pack one expert: float32 [2F, D] and [D, F] into uint8 [gate_up_bytes], [down_bytes].

        Raises CheckpointError for weights that aren't finite in FP8 or four bits.
        """
        shape = self.shape
        assert gate_up.shape == (2 * shape.intermediate, shape.hidden)
        assert down.shape == (shape.hidden, shape.intermediate)
        assert gate_up.dtype == down.dtype == torch.float32
        tensors = (gate_up, down, to_gate_up, to_down)
        if not self._native.megainfer_experts_pack(self.handle, *(_address(x) for x in tensors)):
            raise CheckpointError(not_finite("an expert's weights", self.weight_dtype))

    def pack_gate_up_bias(self, bias: Tensor, to: Tensor) -> None:
        """float32 [2F] into float32 [gate_up_channels], as the products have them."""
        assert bias.shape == (2 * self.shape.intermediate,)
        assert bias.dtype == to.dtype == torch.float32
        self._native.megainfer_experts_pack_gate_up_bias(self.handle, _address(bias), _address(to))

    def forward(
        self, weights: library.ExpertWeights, slots: Sequence[library.Slot], dtype: torch.dtype
    ) -> Tensor:
        """Overwrite the slots' answers with their rows' outputs; choices of each expert, int64 [E],
        valid until the next call.

        weights: where those that are here are.
        """
        self._native.megainfer_experts_forward(
            self.handle,
            weights,
            (library.Slot * len(slots))(*slots),
            len(slots),
            _ROW_TYPES[dtype],
            _address(self._counts),
        )
        return self._counts


class PackedExpert(NamedTuple):
    """Memory for one expert as the kernel has it: uint8 [gate_up_bytes] and [down_bytes], float32
    [gate_up_channels] and [D]."""

    gate_up: Tensor
    down: Tensor
    biases: Biases | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.gate_up, self.down, *(self.biases or ())

    def addresses(self) -> tuple[int, ...]:
        return tuple(map(_address, self.tensors))


class CpuLayerExperts:
    """`experts.LayerExperts` over packed weights; `native` knows where they are.

    expected: how many there will be at most, whose memory is had in one piece.
    """

    def __init__(self, kernel: ExpertKernel, expected: int) -> None:
        self._kernel = kernel
        kernel.free_memory += _memory(kernel, expected)
        self._packed: list[PackedExpert | None] = [None] * kernel.shape.experts
        parts = 4 if kernel.shape.bias else 2
        self._addresses = [(c_void_p * kernel.shape.experts)() for _ in range(parts)]
        self.native = library.ExpertWeights(*map(addressof, self._addresses))

    @property
    def kernel(self) -> ExpertKernel:
        return self._kernel

    def prepare(self, gate_up: Tensor, down: Tensor, biases: Biases | None = None) -> PackedExpert:
        """See `experts.LayerExperts.prepare`."""
        packed = _taken(self._kernel)
        self._kernel.pack(gate_up, down, packed.gate_up, packed.down)
        assert (biases is None) == (packed.biases is None)
        if biases is not None and packed.biases is not None:
            self._kernel.pack_gate_up_bias(biases[0], packed.biases[0])
            packed.biases[1].copy_(biases[1])
        return packed

    def put(self, local_id: int, prepared: object) -> None:
        """See `experts.LayerExperts.put`."""
        assert isinstance(prepared, PackedExpert)
        assert self._packed[local_id] is None, f"slot {local_id} holds an expert"
        self._packed[local_id] = prepared
        for of_all, own in zip(self._addresses, prepared.addresses(), strict=True):
            of_all[local_id] = own

    def take(self, local_id: int) -> PackedExpert:
        """See `experts.LayerExperts.take`."""
        held = self._packed[local_id]
        assert held is not None, f"slot {local_id} is empty"
        self._packed[local_id] = None
        for of_all in self._addresses:
            of_all[local_id] = None
        return held

    def forget(self, prepared: object) -> None:
        """See `experts.LayerExperts.forget`."""
        assert isinstance(prepared, PackedExpert)
        self._kernel.free_memory.append(prepared)

    @property
    def form(self) -> str:
        """See `experts.LayerExperts.form`: instruction sets lay weights out differently."""
        return f"cpu {self._kernel.level} {self._kernel.weight_dtype}"

    @property
    def copied_bytes(self) -> int:
        """See `experts.LayerExperts.copied_bytes`."""
        kernel = self._kernel
        biases = 4 * (kernel.gate_up_channels + kernel.shape.hidden) if kernel.shape.bias else 0
        return kernel.gate_up_bytes + kernel.down_bytes + biases

    def copied(self, local_id: int) -> Tensor:
        """See `experts.LayerExperts.copied`."""
        held = self._packed[local_id]
        assert held is not None, f"slot {local_id} is empty"
        return bytes_of(held.tensors)

    def adopt(self, copied: Tensor) -> PackedExpert:
        """See `experts.LayerExperts.adopt`."""
        packed = _taken(self._kernel)
        fill_with(packed.tensors, copied)
        return packed

    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """See `experts.LayerExperts.forward`."""
        assert counts is None or counts.count(None) == len(counts), "on the host all rows count"
        slots = [
            self._slot(*message) for message in zip(hidden, local_ids, weights, outs, strict=True)
        ]
        dtype = hidden[0].dtype if hidden else torch.float32
        return self._kernel.forward(self.native, slots, dtype)

    def _slot(self, hidden: Tensor, ids: Tensor, weights: Tensor, out: Tensor) -> library.Slot:
        shape, rows = self._kernel.shape, len(hidden)
        assert hidden.shape == out.shape == (rows, shape.hidden)
        assert ids.shape == weights.shape == (rows, shape.top_k)
        assert hidden.dtype == out.dtype
        assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
        return library.Slot(_address(hidden), _address(ids), _address(weights), _address(out), rows)


def _taken(kernel: ExpertKernel) -> PackedExpert:
    """Memory for one more; several threads may ask."""
    try:
        return kernel.free_memory.pop()
    except IndexError:
        (own,) = _memory(kernel, 1)
        return own


def _memory(kernel: ExpertKernel, experts: int) -> list[PackedExpert]:
    """In one piece for so many; their pages are there when they are written."""
    gate_up = on_large_pages(experts * kernel.gate_up_bytes).view(experts, -1)
    down = on_large_pages(experts * kernel.down_bytes).view(experts, -1)
    biases = (
        (torch.empty(experts, kernel.gate_up_channels), torch.empty(experts, kernel.shape.hidden))
        if kernel.shape.bias
        else None
    )
    return [
        PackedExpert(gate_up[e], down[e], None if biases is None else (biases[0][e], biases[1][e]))
        for e in range(experts)
    ]


def _native_shape(shape: ExpertsShape) -> library.ExpertShape:
    activation = shape.activation
    return library.ExpertShape(
        shape.experts,
        shape.hidden,
        shape.intermediate,
        shape.top_k,
        library.Activation(
            _ACTIVATIONS[activation.kind],
            inf if activation.limit is None else activation.limit,
            activation.alpha,
            activation.up_offset,
        ),
        shape.weight_on_input,
    )


def _format(weight_dtype: str) -> int:
    if weight_dtype not in FORMATS:
        raise ConfigError(
            f"expert weights can't be {weight_dtype!r}; use one of {', '.join(FORMATS)}"
        )
    return FORMATS[weight_dtype]


def not_finite(what: str, weight_dtype: str) -> str:
    """The text of an error."""
    return (
        f"{what} hold NaN or infinity, or were stored with such scales, which {weight_dtype} can't "
        "keep: the checkpoint is damaged"
    )


def on_large_pages(size: int) -> Tensor:
    """uint8 [size] of memory whose pages are as large as the system gives: fewer misses of the
    TLB, and prefetchers stop at a page's end."""
    # Private: what is shared between processes gets small pages.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()
