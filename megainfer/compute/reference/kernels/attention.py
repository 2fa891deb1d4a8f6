"""Attention over a paged cache: `num_blocks` blocks of `block_size` tokens, [N, B, Hkv, d]."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def write_cache(cache: Tensor, values: Tensor, places: Tensor) -> None:
    """Store what each token leaves: values [T, ...] go to the flat places [T] of cache [N, B, ...].

    A slot is block * block_size + offset.
    """
    cache.flatten(0, 1).index_copy_(0, places, values)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What becomes of a query's scores; the fields are those of `AttentionSpec`.

    scale: 1 / sqrt(d) where None. sinks: [H].
    """

    scale: float | None = None
    sinks: Tensor | None = None
    window: int | None = None
    chunk: int | None = None

    @property
    def sees_all(self) -> bool:
        """Whether a query sees all positions up to its own."""
        return self.window is None and self.chunk is None

    def seen(self, queries: Tensor, length: int) -> Tensor:
        """bool [..., length]: which of the first positions each query sees, its own int64 [...]."""
        own, keys = queries[..., None], torch.arange(length, device=queries.device)
        seen = keys <= own
        if self.window is not None:
            seen &= keys > own - self.window
        if self.chunk is not None:
            seen &= keys // self.chunk == own // self.chunk
        return seen


PLAIN = Scoring()


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    mask: Tensor,
    scoring: Scoring = PLAIN,
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
    k = _gather(k_cache, block_table, mask.shape[-1]).masked_fill(missing, 0).to(q.dtype)
    v = _gather(v_cache, block_table, mask.shape[-1]).masked_fill(missing, 0).to(q.dtype)
    seen = mask if scoring.sees_all else scoring.seen(mask.sum(-1) - 1, mask.shape[-1])
    sinks = None if scoring.sinks is None else scoring.sinks.view(kv_heads, -1, 1)
    return _attend(grouped, k, v, seen, scoring.scale, sinks).reshape(sequences, heads * head_dim)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    blocks: Tensor,
    context: int,
    scoring: Scoring = PLAIN,
) -> Tensor:
    """The last T tokens of one sequence of `context` tokens: q [T, H, d] -> [T, H * d].

    blocks: int64 [blocks], where the sequence's tokens lie. Query t sees the positions up to its
    own, context - T + t, as far back as `scoring` says.
    """
    tokens, heads, head_dim = q.shape
    group = heads // k_cache.shape[2]
    k = _gather(k_cache, blocks[None], context).repeat_interleave(group, 1).to(q.dtype)
    v = _gather(v_cache, blocks[None], context).repeat_interleave(group, 1).to(q.dtype)
    seen = scoring.seen(torch.arange(context - tokens, context, device=q.device), context)
    sinks = None if scoring.sinks is None else scoring.sinks.view(heads, 1, 1)
    out = _attend(q.transpose(0, 1)[None], k, v, seen, scoring.scale, sinks)
    return out[0].transpose(0, 1).reshape(tokens, heads * head_dim)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None, sinks: Tensor | None
) -> Tensor:
    """q [..., T, d], k and v [..., L, d], seen broadcastable to [..., T, L] -> [..., T, d].

    sinks: scores that take part in the softmax, broadcastable to [..., T, 1].
    """
    if sinks is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen, -torch.inf)
    with_sink = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1)
    return with_sink.softmax(-1)[..., :-1] @ v


def _gather(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """The first `length` cached tokens of each sequence as [S, Hkv, length, d]."""
    sequences, blocks = block_table.shape
    _, block_size, heads, head_dim = cache.shape
    rows = cache.index_select(0, block_table.flatten())
    tokens = rows.view(sequences, blocks * block_size, heads, head_dim)
    return tokens[:, :length].transpose(1, 2)
