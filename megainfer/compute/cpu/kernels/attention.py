"""The attention half of a layer with packed weights: linear, attention, gate, head."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention_layer import ROW_TYPES, PackedAttention, layer_cache
from megainfer.compute.cpu.kernels.experts import FORMATS, not_finite, on_large_pages
from megainfer.compute.cpu.kernels.packed import PackedLinear, PackedNorm, address, optional_address
from megainfer.compute.cpu.kernels.routing import PackedRouter
from megainfer.compute.cpu.kernels.threads import Threads, own_or_shared
from megainfer.compute.edits import RowEdits
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference.kernels import Homes
from megainfer.compute.tokens import DrawWish, Scores
from megainfer.errors import CheckpointError, ConfigError

PACKED_AT_ONCE = 1024
"""Channels that are widened to float32 at a time; panels of every level divide it."""


@dataclass(slots=True)
class PackedGate:
    """One layer's norm and router; `native` points into tensors of `homes` and `kept`."""

    native: library.GateLayer
    homes: Homes
    kept: tuple[object, ...]

    def move(self, homes: Homes) -> None:
        """Send tokens there from now on; not while the gate is computed."""
        self.native.homes = _native_homes(homes)
        self.homes = homes


@dataclass(frozen=True, slots=True)
class Chosen:
    """What goes to each of N expert nodes: of the first counts[n] rows of each tensor's entry n.

    rows: int64 [N, T], ascending. ids: int32 [N, T, K], -1 for a choice that lives elsewhere.
    weights: float32 [N, T, K], 0 for such a choice.
    """

    counts: list[int]
    rows: Tensor
    ids: Tensor
    weights: Tensor


class AttentionKernel:
    """The C++ object that computes attention halves; it owns scratch.

    threads: shared with other kernels, or how many to have. level: an instruction set of
    `library.levels()`, the best unless given. One caller at a time. The residual stream x is
    float32 throughout.

    Raises ConfigError when the library isn't built or can't run the level here.
    """

    def __init__(self, threads: Threads | int = 1, level: str | None = None) -> None:
        native = library.load()
        self.threads = own_or_shared(threads)
        self.level = level or library.levels()[-1]
        self._native = native
        self.handle = native.megainfer_half_new(self.level.encode(), self.threads.handle)
        if self.handle is None:
            raise ConfigError(
                f"kernels of level {self.level!r} don't run here; use one of "
                f"{', '.join(library.levels())}"
            )
        weakref.finalize(self, native.megainfer_half_delete, self.handle)

    def pack(self, weight: Tensor, weight_dtype: str, bias: Tensor | None = None) -> PackedLinear:
        """weight: [outputs, inputs], of any float dtype. bias: float32 [outputs].

        Raises CheckpointError for weights that aren't finite in FP8 or four bits.
        """
        if weight_dtype not in FORMATS:
            raise ConfigError(f"weights can't be {weight_dtype!r}; use one of {', '.join(FORMATS)}")
        outputs, inputs = weight.shape
        kind = FORMATS[weight_dtype]
        panels = on_large_pages(self._bytes(kind, inputs, outputs))
        for first in range(0, outputs, PACKED_AT_ONCE):
            rows = weight[first : first + PACKED_AT_ONCE].to(torch.float32).contiguous()
            to = panels[self._bytes(kind, inputs, first) :]
            if not self._native.megainfer_half_pack(
                self.handle, kind, address(rows), inputs, len(rows), address(to)
            ):
                raise CheckpointError(not_finite("weights", weight_dtype))
        assert bias is None or (bias.dtype == torch.float32 and bias.shape == (outputs,))
        native = library.Linear(address(panels), optional_address(bias), inputs, outputs, kind)
        return PackedLinear(native, panels, bias)

    def linear(self, linear: PackedLinear, x: Tensor) -> Tensor:
        """x: float32 [T, inputs] -> float32 [T, outputs]."""
        assert x.dtype == torch.float32
        out = torch.empty(len(x), linear.outputs)
        self._native.megainfer_half_linear(
            self.handle, linear.native, address(x), len(x), address(out)
        )
        return out

    def norm(self, x: Tensor, norm: PackedNorm) -> Tensor:
        """The norm of each row: float32 [T, D] -> float32 [T, D]."""
        assert x.dtype == torch.float32
        out, (rows, width) = torch.empty_like(x), x.shape
        self._native.megainfer_half_norm(
            self.handle, norm.native, address(x), rows, width, address(out)
        )
        return out

    def sigmoid_(self, x: Tensor) -> Tensor:
        """1 / (1 + e^-x) of float32, in place."""
        assert x.dtype == torch.float32
        self._native.megainfer_half_sigmoid(self.handle, address(x), x.numel())
        return x

    def attend(
        self,
        layer: PackedAttention,
        step: library.StepRows,
        cache: Tensor,
        x: Tensor,
    ) -> None:
        """x [T, D] += attention of its norm; the rows' keys and values go into the cache.

        cache: [blocks, *block_shape(Hkv, d, dtype)], of one of `CACHE_TYPES`.
        """
        native, kept = layer.native, layer_cache(layer, cache)
        self._native.megainfer_half_attend(self.handle, native, step, kept, address(x))

    def gate(
        self,
        gate: PackedGate,
        x: Tensor,
        token_ids: Tensor,
        hidden: Tensor,
        ways: Tensor | None = None,
    ) -> Chosen:
        """Write the norm of x into hidden [T, D] and choose each row's experts.

        token_ids: int64 [T]; they decide where the router is hashed. ways: int64 [T], where an
        expert's tokens are shared out, see `compute.ways`.
        """
        assert token_ids.dtype == torch.int64
        assert ways is not None or gate.homes.num_ways == 1
        native = gate.native
        tokens, nodes, top_k = len(x), native.homes.num_nodes, native.router.top_k
        counts = torch.empty(nodes, dtype=torch.int64)
        rows = torch.empty(nodes, tokens, dtype=torch.int64)
        ids = torch.empty(nodes, tokens, top_k, dtype=torch.int32)
        weights = torch.empty(nodes, tokens, top_k)
        scatter = library.Scatter(*(address(part) for part in (counts, rows, ids, weights)))
        self._native.megainfer_half_gate(
            self.handle,
            native,
            address(x),
            address(token_ids),
            optional_address(ways),
            tokens,
            ROW_TYPES[hidden.dtype],
            address(hidden),
            scatter,
        )
        return Chosen(counts.tolist(), rows, ids, weights)

    def head(self, linear: PackedLinear, norm: PackedNorm, x: Tensor, rows: Tensor) -> Tensor:
        """Linear of the norms of these rows (int64 [S]) of x [T, D]: float32 [S, outputs]."""
        out = torch.empty(len(rows), linear.outputs)
        self._native.megainfer_half_head(
            self.handle,
            linear.native,
            norm.native,
            address(x),
            address(rows),
            len(rows),
            address(out),
        )
        return out

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of each row of float32 [S, V], and where (int64 [S]), the first of several;
        NaN where a row has one."""
        assert logits.dtype == torch.float32
        rows, width = logits.shape
        ids = torch.empty(rows, dtype=torch.int64)
        self._native.megainfer_half_argmax(self.handle, address(logits), rows, width, address(ids))
        values = logits.gather(1, ids.clamp(min=0)[:, None])[:, 0]
        return torch.where(ids < 0, torch.nan, values), ids

    def draw(self, logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
        """See `TokenKernels.draw`."""
        assert logits.dtype == torch.float32
        rows, width = logits.shape
        native = (library.DrawWish * rows)(
            *(library.DrawWish(w.top_p, w.min_p, w.uniform, w.top_k, w.temperature) for w in wishes)
        )
        tokens = torch.empty(rows, dtype=torch.int64)
        self._native.megainfer_half_draw(
            self.handle, address(logits), rows, width, native, address(tokens)
        )
        return tokens

    def edit(self, logits: Tensor, edits: Sequence[RowEdits]) -> None:
        """See `TokenKernels.edit`; torch's vectors are as fast."""
        reference.edit(logits, edits)

    def scores(
        self, logits: Tensor, tokens: Tensor, rows: Sequence[int], wanted: Sequence[int]
    ) -> Scores:
        """See `TokenKernels.scores`; as `edit`."""
        return reference.scores(logits, tokens, rows, wanted)

    def _bytes(self, kind: int, inputs: int, outputs: int) -> int:
        size: int = self._native.megainfer_half_linear_bytes(self.handle, kind, inputs, outputs)
        return size


def pack_gate(
    linear: PackedLinear | None,
    norm: PackedNorm,
    homes: Homes,
    router: PackedRouter,
) -> PackedGate:
    """linear: of the router; None where its score is constant."""
    lacking = library.Linear(None, None, norm.width, router.native.experts, 0)
    native = library.GateLayer(
        lacking if linear is None else linear.native,
        norm.native,
        _native_homes(homes),
        router.native,
    )
    return PackedGate(native, homes, (linear, norm, router))


def _native_homes(homes: Homes) -> library.Homes:
    node, local_id = address(homes.node), address(homes.local_id)
    return library.Homes(node, local_id, homes.num_nodes, homes.num_ways)


def step_rows(step: StepBatch) -> library.StepRows:
    """Addresses of a step's tensors, which the caller keeps."""
    return library.StepRows(
        address(step.token_ids),
        address(step.positions),
        address(step.kept_at),
        address(step.row_starts),
        address(step.block_table),
        len(step.positions),
        *step.block_table.shape,
    )
