"""Multi-head latent attention (DeepSeek-V2) over a paged cache [N, B, R + r].

A token leaves one row: its latent [R], from which every head's key and value are projected, and a
rotated key [r] that all heads share. There are two ways to attend, which give the same:

absorbed: queries are projected into the space of latents and attend there, all heads to the same
rows, and what they find is projected to values. Nothing is computed for a token of the context but
scores and sums, 2R + r multiplications a head for each query.

expanded: the context's keys [n + r] and values [v] are projected first. Each query then costs less,
n + r + v a head, but each token of the context R (n + v) more.
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def gather_latents(cache: Tensor, block_table: Tensor, visible: Tensor) -> Tensor:
    """The first L cached rows of each sequence as [S, L, R + r].

    block_table: int64 [S, blocks], the blocks of each sequence, padded with any of its own.
    visible: bool [S, T, L]; rows that no query sees are zeros, since what another sequence has left
    there may not be finite.
    """
    rows = cache.index_select(0, block_table.flatten())
    latents = rows.view(len(block_table), -1, cache.shape[-1])[:, : visible.shape[-1]]
    return latents.masked_fill(~visible.any(1)[..., None], 0)


def absorbed_attention(
    q: Tensor, latents: Tensor, visible: Tensor, rank: int, scale: float
) -> Tensor:
    """Queries in the space of latents: q [S, T, H, R + r] -> sums of latents [S, T, H, R].

    latents: [S, L, R + r]. visible: bool [S, T, L], where a query sees a row. rank: R.
    """
    # Queries of all heads of a sequence stand where one head's queries would.
    sequences, tokens, heads, _ = q.shape
    rows = q.flatten(1, 2)[:, None]
    mask = visible.repeat_interleave(heads, 1)[:, None]
    keys = latents[:, None]
    out = scaled_dot_product_attention(rows, keys, keys[..., :rank], attn_mask=mask, scale=scale)
    return out.view(sequences, tokens, heads, -1)


def expanded_attention(
    q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float
) -> Tensor:
    """Heads by themselves: q [T, H, n + r], keys [L, H, n + r], values [L, H, v] -> [T, H, v]."""
    q, keys, values = (part.transpose(0, 1)[None] for part in (q, keys, values))
    out = scaled_dot_product_attention(q, keys, values, attn_mask=visible, scale=scale)
    return out[0].transpose(0, 1)
