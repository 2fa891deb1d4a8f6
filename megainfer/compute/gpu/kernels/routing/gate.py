"""The gate: which experts each token chooses, how they are weighted, and where they live."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32, int32, int64

from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.routing.router_scores import scores_of, softmax
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.compute.ways import OF_POSITION, OF_TOKEN, SHIFT
from megainfer.device import Device
from megainfer.models.spec import GroupScore, RouterSpec
from megainfer.topology import WAYS

_ONE_WARP = 1024
"""Scores of a token that one warp holds in registers, so that it waits for no other."""

_WAYS = tl.constexpr(WAYS)
_OF_TOKEN, _OF_POSITION = tl.constexpr(OF_TOKEN), tl.constexpr(OF_POSITION)
_SHIFT = tl.constexpr(SHIFT)


class Router(NamedTuple):
    """selection_bias: float32 [E], of a spec with `selection_bias`. table: int64 [V, K], each
    token's experts, of a spec that is `hashed`."""

    spec: RouterSpec
    selection_bias: Tensor | None = None
    table: Tensor | None = None


class Choices(NamedTuple):
    """The K experts of each of T tokens, best first, rows contiguous.

    nodes, local_ids: int32 [T, K], where they live. weights: float32 [T, K]. rows: int64 [T], 0 to
    T - 1.
    """

    nodes: Tensor
    local_ids: Tensor
    weights: Tensor
    rows: Tensor


@triton.jit
def _ranks(scores):
    # NaN counts as greatest, as torch sorts it; so something is best, whatever comes.
    return tl.where(scores != scores, float("inf"), scores)


@triton.jit
def _best(scores, ids, free):
    # The id of the best score of those that are free, one at least; the lowest of equals.
    ranks = _ranks(scores)
    best = tl.max(tl.where(free, ranks, float("-inf")))
    return tl.min(tl.where(free & (ranks == best), ids, 0x7FFFFFFF))


@triton.jit
def _within_groups(
    scores, ids, exists, GROUPS: tl.constexpr, KEPT: tl.constexpr, TOP2: tl.constexpr
):
    # -inf where an expert is in none of the best groups, which are the tile's rows.
    ranks = tl.where(exists, _ranks(scores), float("-inf"))
    of_group = tl.max(ranks, 1)
    if TOP2:
        first = tl.min(tl.where(ranks == of_group[:, None], ids, 0x7FFFFFFF), 1)
        of_group += tl.max(tl.where(ids == first[:, None], float("-inf"), ranks), 1)
    groups = tl.arange(0, ranks.shape[0])
    kept = groups < 0
    for _ in range(KEPT):
        kept = kept | (groups == _best(of_group, groups, (groups < GROUPS) & ~kept))
    return tl.where(kept[:, None], scores, float("-inf"))


@triton.jit
def _sparsemixer(logits, ids, free, JITTER: tl.constexpr):
    # The best of those that are free, and its weight: a softmax over those near it.
    expert = _best(logits, ids, free)
    best = tl.sum(tl.where(ids == expert, logits, 0.0))
    size = tl.abs(logits)
    far = (best - logits) / tl.where(size > best, size, best) > 2 * JITTER
    powers = tl.where(free & ~far, tl.exp(logits - best), 0.0)
    return expert, 1 / tl.sum(powers)


@triton.jit
def _way_of(token, position):
    # `compute.ways.ways_of`.
    return ((token * _OF_TOKEN + position * _OF_POSITION) & 0xFFFFFFFF) >> _SHIFT


@triton.jit
def _route(
    logits_ptr, bias_ptr, table_ptr, token_ids_ptr, positions_ptr, count_ptr, homes_ptr,
    nodes_ptr, local_ids_ptr, weights_ptr, rows_ptr,
    SCORE: tl.constexpr, BIASED: tl.constexpr, HASHED: tl.constexpr,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, KEPT: tl.constexpr, TOP2: tl.constexpr,
    K: tl.constexpr, NORMALISE: tl.constexpr, EPSILON: tl.constexpr, LEAST_SUM: tl.constexpr,
    ROUNDED: tl.constexpr, SCALE: tl.constexpr, JITTER: tl.constexpr,
    GROUP_TILE: tl.constexpr, SIZE_TILE: tl.constexpr, K_TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUP_TILE)[:, None], tl.arange(0, SIZE_TILE)[None, :]
    exists = (group < GROUPS) & (member < SIZE)
    ids = tl.where(exists, group * SIZE + member, GROUPS * SIZE)
    slots = tl.arange(0, K_TILE)
    is_slot = slots < K
    token = tl.load(token_ids_ptr + row)

    if SCORE == "constant":
        logits = tl.zeros(ids.shape, tl.float32)
    else:
        logits = tl.load(logits_ptr + row * GROUPS * SIZE + ids, mask=exists, other=0.0)
        logits = logits.to(tl.float32)
    scores = scores_of(logits, exists, SCORE)
    ranked = scores
    if BIASED:
        ranked += tl.load(bias_ptr + ids, mask=exists, other=0.0)
    if KEPT < GROUPS:
        ranked = _within_groups(ranked, ids, exists, GROUPS, KEPT, TOP2)

    free = exists
    experts = tl.zeros([K_TILE], tl.int32)
    weights = tl.zeros([K_TILE], tl.float32)
    for k in range(K):
        if SCORE == "sparsemixer":
            expert, weight = _sparsemixer(logits, ids, free, JITTER)
        else:
            if HASHED:
                expert = tl.load(table_ptr + token * K + k).to(tl.int32)
            else:
                expert = _best(ranked, ids, free)
            weight = tl.sum(tl.where(ids == expert, scores, 0.0))
        free = free & (ids != expert)
        experts = tl.where(slots == k, expert, experts)
        weights = tl.where(slots == k, weight, weights)

    if SCORE == "logit":
        weights = softmax(weights, is_slot)
    if NORMALISE:
        total = tl.sum(weights) + EPSILON
        weights /= tl.where(total < LEAST_SUM, LEAST_SUM, total)
    if ROUNDED:
        weights = weights.to(logits_ptr.dtype.element_ty).to(tl.float32)

    home = homes_ptr + experts * _WAYS + _way_of(token, tl.load(positions_ptr + row))
    node = tl.load(home, mask=is_slot, other=0)
    local_id = tl.load(home + GROUPS * SIZE * _WAYS, mask=is_slot, other=0)
    if count_ptr is not None:
        counts = row < tl.load(count_ptr)
        node, local_id = tl.where(counts, node, -1), tl.where(counts, local_id, -1)
    out = row * K + slots
    tl.store(nodes_ptr + out, node, mask=is_slot)
    tl.store(local_ids_ptr + out, local_id, mask=is_slot)
    tl.store(weights_ptr + out, weights * SCALE, mask=is_slot)
    tl.store(rows_ptr + row, row)


def route(
    device: Device,
    logits: Tensor,
    router: Router,
    homes: HomeTable,
    token_ids: Tensor,
    positions: Tensor,
    count: Tensor | None = None,
) -> Choices:
    """Which experts each token chooses, of logits [T, E], their bias included.

    A router of constant score looks at the shape of logits only. token_ids, positions: int64 [T],
    of the tokens. count: int32 [1], of the rows that aren't padding, which is sent nowhere (-1);
    None: all. All are contiguous. A row of NaN gets some experts, and NaN for weights.
    """
    rows, top_k = logits.shape[0], router.spec.top_k
    choices = Choices(
        device.empty((rows, top_k), int32),
        device.empty((rows, top_k), int32),
        device.empty((rows, top_k), float32),
        device.empty((rows,), int64),
    )
    launch(
        device, _route, (rows,),
        logits, router.selection_bias, router.table, token_ids, positions, count, homes.table,
        *choices,
        **_constants(router.spec),
        writes=choices,
    )  # fmt: skip
    return choices


def _constants(spec: RouterSpec) -> dict[str, Any]:
    count = 1 if spec.groups is None else spec.groups.count
    size = spec.num_experts // count
    group_tile, size_tile = power_of_two(count), power_of_two(size)
    return {
        "SCORE": spec.score.value,
        "BIASED": spec.selection_bias,
        "HASHED": spec.hashed,
        "GROUPS": count,
        "SIZE": size,
        "KEPT": count if spec.groups is None else spec.groups.kept,
        "TOP2": spec.groups is not None and spec.groups.score is GroupScore.TOP2_SUM,
        "K": spec.top_k,
        "NORMALISE": spec.normalise,
        "EPSILON": spec.epsilon,
        "LEAST_SUM": spec.least_sum,
        "ROUNDED": spec.rounded,
        "SCALE": spec.scale,
        "JITTER": spec.jitter,
        "GROUP_TILE": group_tile,
        "SIZE_TILE": size_tile,
        "K_TILE": power_of_two(spec.top_k),
        "num_warps": 1 if group_tile * size_tile <= _ONE_WARP else 4,
    }
