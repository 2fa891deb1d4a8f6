"""Paged attention against a loop over queries, heads and positions."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.reference import kernels as kernels

BLOCK, HEADS, KV_HEADS, DIM = 4, 6, 2, 8


def filled_caches(tokens_of: list[int]) -> tuple[Tensor, Tensor, list[list[int]], list, list]:
    """Caches full of NaN but for the given sequences; also their blocks, keys and values."""
    total = sum(-(-tokens // BLOCK) for tokens in tokens_of)
    order = iter(torch.randperm(total).tolist())
    k_cache = torch.full((total, BLOCK, KV_HEADS, DIM), torch.nan)
    v_cache = k_cache.clone()
    blocks, keys, values = [], [], []
    for tokens in tokens_of:
        mine = [next(order) for _ in range(-(-tokens // BLOCK))]
        k, v = torch.randn(2, tokens, KV_HEADS, DIM)
        k_cache[mine], v_cache[mine] = 0.0, 0.0  # the rest of the last block
        slots = torch.tensor([mine[t // BLOCK] * BLOCK + t % BLOCK for t in range(tokens)])
        kernels.write_cache(k_cache, k, slots)
        kernels.write_cache(v_cache, v, slots)
        blocks.append(mine)
        keys.append(k)
        values.append(v)
    return k_cache, v_cache, blocks, keys, values


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query [H, d] over all of k and v [L, Hkv, d] -> [H * d]."""
    out = torch.empty(HEADS, DIM)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        scores = torch.softmax(k[:, shared] @ q[head] / DIM**0.5, dim=0)
        out[head] = scores @ v[:, shared]
    return out.flatten()


def test_decodes_of_unequal_lengths():
    lengths = [1, 4, 5, 13]
    k_cache, v_cache, blocks, keys, values = filled_caches(lengths)
    width = max(len(mine) for mine in blocks)
    table = torch.tensor([mine + mine[:1] * (width - len(mine)) for mine in blocks])
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    q = torch.randn(len(lengths), HEADS, DIM)
    actual = kernels.decode_attention(q, k_cache, v_cache, table, mask)
    expected = [naive(*triple) for triple in zip(q, keys, values, strict=True)]
    torch.testing.assert_close(actual, torch.stack(expected))


@pytest.mark.parametrize(("tokens", "context"), [(9, 9), (5, 9), (2, 12), (8, 8)])
def test_prefill_chunk_sees_what_came_before_and_itself(tokens, context):
    k_cache, v_cache, (_, blocks), (_, k), (_, v) = filled_caches([6, context])
    q = torch.randn(tokens, HEADS, DIM)
    actual = kernels.prefill_attention(q, k_cache, v_cache, torch.tensor(blocks), context)
    for t in range(tokens):
        seen = context - tokens + t + 1
        torch.testing.assert_close(actual[t], naive(q[t], k[:seen], v[:seen]))


def test_write_cache_touches_its_slots_only():
    cache = torch.zeros(3, BLOCK, KV_HEADS, DIM)
    values = torch.randn(2, KV_HEADS, DIM)
    kernels.write_cache(cache, values, torch.tensor([9, 2]))
    assert torch.equal(cache[2, 1], values[0])
    assert torch.equal(cache[0, 2], values[1])
    assert int(cache.ne(0).any(-1).any(-1).sum()) == 2


def test_of_positions_that_tie_the_first_are_chosen():
    q, weights = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2)
    keys = torch.tensor([-1.0, 1.0, -2.0, -3.0, 2.0, -1.0])[None, :, None].expand(1, 6, 4)
    visible = torch.tensor([False, True, True, True, True, True])[None, None]
    chosen = kernels.choose_positions(q, weights, keys, visible, 3)
    assert chosen.flatten().nonzero().flatten().tolist() == [1, 2, 4]
