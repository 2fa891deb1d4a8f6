"""Attention over a paged cache: `num_blocks` blocks of `block_size` tokens, [N, B, Hkv, d]."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def write_cache(cache: Tensor, values: Tensor, slots: Tensor) -> None:
    """Store what each token leaves: values [T, ...] go to the flat slots [T] of cache [N, B, ...].

    A slot is block * block_size + offset.
    """
    cache.flatten(0, 1).index_copy_(0, slots, values)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, mask: Tensor
) -> Tensor:
    """One query token a sequence, all sequences at once: q [S, H, d] -> [S, H * d].

    block_table: int64 [S, blocks], the blocks of each sequence, padded with any of its own.
    mask: bool [S, 1, 1, L], true where position l of the sequence exists; L <= blocks * B.
    """
    sequences, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    # The query heads that share a key head stand where a prefill's query tokens would.
    grouped = q.reshape(sequences, kv_heads, heads // kv_heads, head_dim)
    # What another sequence has left there may not be finite, and 0 * NaN is NaN.
    missing = ~mask.transpose(-1, -2)
    k = _gather(k_cache, block_table, mask.shape[-1]).masked_fill(missing, 0)
    v = _gather(v_cache, block_table, mask.shape[-1]).masked_fill(missing, 0)
    out = scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    return out.reshape(sequences, heads * head_dim)


def prefill_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, blocks: Tensor, context: int
) -> Tensor:
    """The last T tokens of one sequence of `context` tokens: q [T, H, d] -> [T, H * d].

    blocks: int64 [blocks], where the sequence's tokens lie. Query t sees the positions up to its
    own, context - T + t.
    """
    tokens, heads, head_dim = q.shape
    k = _gather(k_cache, blocks[None], context)
    v = _gather(v_cache, blocks[None], context)
    first = tokens == context
    mask = None if first else _causal_mask(tokens, context, q.device)
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=first, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(tokens, heads * head_dim)


def _causal_mask(tokens: int, context: int, device: torch.device) -> Tensor:
    """bool [T, context]: true where a query sees a position; the last query sees all."""
    full = torch.ones(tokens, context, dtype=torch.bool, device=device)
    return full.tril(context - tokens)


def _gather(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """The first `length` cached tokens of each sequence as [S, Hkv, length, d]."""
    sequences, blocks = block_table.shape
    _, block_size, heads, head_dim = cache.shape
    rows = cache.index_select(0, block_table.flatten())
    tokens = rows.view(sequences, blocks * block_size, heads, head_dim)
    return tokens[:, :length].transpose(1, 2)
