"""A router's parameters as the C++ gate takes them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.models.spec import GroupScore, RouterScore, RouterSpec

_SCORES = {
    RouterScore.SOFTMAX: 0,
    RouterScore.SIGMOID: 1,
    RouterScore.SQRT_SOFTPLUS: 2,
    RouterScore.LOGIT: 3,
    RouterScore.SPARSEMIXER: 4,
    RouterScore.CONSTANT: 5,
}
_RANKED_BY = {GroupScore.MAX: 1, GroupScore.TOP2_SUM: 2}
_ROUNDINGS = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True, slots=True)
class PackedRouter:
    """How one layer's experts are chosen; `kept` are the tensors that `native` points into."""

    native: library.Router
    kept: tuple[Tensor | None, ...]


def pack_router(
    spec: RouterSpec,
    dtype: torch.dtype,
    selection_bias: Tensor | None = None,
    table: Tensor | None = None,
) -> PackedRouter:
    """dtype: of the model, which weights are rounded to if the spec says so. selection_bias:
    float32 [E]. table: int64 [V, K], where the router is hashed."""
    count, kept, ranked_by = _groups(spec)
    native = library.Router(
        _optional(selection_bias, (spec.num_experts,), torch.float32),
        None if table is None else _optional(table, (len(table), spec.top_k), torch.int64),
        spec.num_experts,
        spec.top_k,
        count,
        kept,
        ranked_by,
        spec.epsilon,
        spec.least_sum,
        spec.scale,
        spec.jitter,
        _SCORES[spec.score],
        spec.normalise,
        _ROUNDINGS[dtype if spec.rounded else torch.float32],
    )
    return PackedRouter(native, (selection_bias, table))


def _groups(spec: RouterSpec) -> tuple[int, int, int]:
    if spec.groups is None:
        return 0, 0, 0
    return spec.groups.count, spec.groups.kept, _RANKED_BY[spec.groups.score]


def _optional(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
    if tensor is None:
        return None
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous()
    return tensor.data_ptr()
