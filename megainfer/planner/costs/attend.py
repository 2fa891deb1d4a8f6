"""What attention does beside its dense products: it reads a cache, or a state, and computes there.

FLOPs are those of products and of the recurrence, a multiplication and an addition each; softmax,
rotations, norms and activations aren't counted. Bytes are what one pass over the cache moves.
"""

from dataclasses import dataclass
from math import ceil, prod

from megainfer.models.spec import AttentionSpec, CacheFormat, DeltaNetSpec, IndexerSpec, MlaSpec
from megainfer.models.spec.model import STATE_ELEMENT_BYTES
from megainfer.planner.costs.step import Contexts, Step

TILE_QUERIES = 16
"""Rows of the smallest product of matrix units: heads that share a key, filled up (PTX ISA, mma
m16n8k16)."""
FLOPS_OF_A_STATE = 7
"""Of each element and token: decayed (1), read with the key (2), added to (2), read with the query
(2)."""


@dataclass(frozen=True, slots=True)
class CacheWork:
    """FLOPs, and bytes read and written. tiled_flops: with queries of decoded rows filled up to
    whole tiles, as matrix units of GPUs compute them."""

    flops: float
    bytes: float
    tiled_flops: float

    def __add__(self, other: "CacheWork") -> "CacheWork":
        return CacheWork(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.tiled_flops + other.tiled_flops,
        )


def visible(attention: AttentionSpec | MlaSpec, contexts: Contexts) -> float:
    """Positions that a row attends to, on average."""
    if isinstance(attention, MlaSpec):
        indexer = attention.indexer
        return contexts.mean if indexer is None else contexts.mean_within(indexer.top_k)
    if attention.chunk is not None:
        return contexts.mean_in_chunk(attention.chunk)
    return contexts.mean if attention.window is None else contexts.mean_within(attention.window)


def cache_work(
    attention: AttentionSpec | MlaSpec | DeltaNetSpec,
    step: Step,
    kept: CacheFormat,
    ranks: int = 1,
    expands: bool = False,
) -> CacheWork:
    """Of one layer, of one of `ranks` ranks that share its heads.

    kept: what the cache is in. Decoded rows read what they see, each for itself; a chunk of a
    prompt reads once what its last row sees. expands: latent attention takes whichever form has
    fewer FLOPs, as on CPUs; else always the absorbed one, as on GPUs.
    """
    if isinstance(attention, DeltaNetSpec):
        return _recurrence(attention, step, ranks)
    if isinstance(attention, MlaSpec):
        return _latent(attention, step, kept, ranks, expands)
    heads = ceil(attention.num_heads / ranks)
    kv_heads = ceil(attention.num_kv_heads / ranks)
    a_token = attention.cached_bytes(kept) // attention.num_kv_heads * kv_heads
    seen, by_prompts = visible(attention, step.contexts), visible(attention, step.prefill_contexts)
    return _work(
        decoded=4 * heads * attention.head_dim * step.decode_rows * seen,
        prompts=4 * heads * attention.head_dim * step.prefill_rows * by_prompts,
        bytes_=a_token * _moved(step, seen, by_prompts),
        shared=heads // kv_heads,
    )


def _work(decoded: float, prompts: float, bytes_: float, shared: int) -> CacheWork:
    """decoded, prompts: FLOPs. shared: heads that share a position's key."""
    filled = max(1.0, TILE_QUERIES / shared)
    return CacheWork(decoded + prompts, bytes_, decoded * filled + prompts)


def _latent(spec: MlaSpec, step: Step, kept: CacheFormat, ranks: int, expands: bool) -> CacheWork:
    """Every rank has all latents. The projections to latents and from them are dense products."""
    heads = ceil(spec.num_heads / ranks)
    seen, by_prompts = visible(spec, step.contexts), visible(spec, step.prefill_contexts)
    index_bytes = 0 if spec.indexer is None else spec.indexer.head_dim * kept.element_bytes
    absorbed = 2 * heads * (spec.latent_dim + spec.kv_lora_rank)
    prompts = step.prefill_rows * by_prompts * absorbed
    if expands and spec.indexer is None:
        prompts = min(prompts, _expanded(spec, step, by_prompts, heads))
    work = _work(
        decoded=step.decode_rows * seen * absorbed,
        prompts=prompts,
        bytes_=(spec.cached_bytes(kept) - index_bytes) * _moved(step, seen, by_prompts),
        shared=heads,
    )
    return work if spec.indexer is None else work + _indexed(spec.indexer, step, kept.element_bytes)


def _expanded(spec: MlaSpec, step: Step, by_prompts: float, heads: int) -> float:
    """FLOPs of prompts beyond the dense product with `kv_up`, which counts once a row: expanded, it
    is one of every position that a chunk sees instead."""
    up = 2 * heads * spec.kv_lora_rank * (spec.nope_dim + spec.v_dim)
    positions = _chunks(step) * _seen_by_a_chunk(step, by_prompts)
    met = step.prefill_rows * by_prompts * 2 * heads * (spec.qk_dim + spec.v_dim)
    return met + up * (positions - step.prefill_rows)


def _indexed(indexer: IndexerSpec, step: Step, element_bytes: int) -> CacheWork:
    """All positions are met, with all heads on every rank: products with the queries, and their sum
    weighted by head."""
    seen, by_prompts = step.contexts.mean, step.prefill_contexts.mean
    flops = 2 * indexer.num_heads * (indexer.head_dim + 1)
    return _work(
        decoded=flops * step.decode_rows * seen,
        prompts=flops * step.prefill_rows * by_prompts,
        bytes_=indexer.head_dim * element_bytes * _moved(step, seen, by_prompts),
        shared=indexer.num_heads,
    )


def _recurrence(spec: DeltaNetSpec, step: Step, ranks: int) -> CacheWork:
    """Decoded rows read and write their states, a chunk of a prompt once."""
    share = ceil(spec.key_heads / ranks) / spec.key_heads
    elements = spec.value_heads * spec.key_dim * spec.value_dim
    token = FLOPS_OF_A_STATE * elements + 2 * spec.taps * spec.channels
    states = sum(map(prod, spec.state_shapes)) * STATE_ELEMENT_BYTES
    passes = step.decode_rows + _chunks(step)
    flops = token * share * step.rows
    return CacheWork(flops, 2 * states * share * passes, flops)


def _moved(step: Step, seen: float, by_prompts: float) -> float:
    """Positions read by decoded rows, each its own, and by chunks; and written, one a row."""
    return (
        step.decode_rows * seen
        + _chunks(step) * _seen_by_a_chunk(step, by_prompts)
        + step.decode_rows
        + step.prefill_rows
    )


def _chunks(step: Step) -> float:
    return step.prefill_rows / step.chunk


def _seen_by_a_chunk(step: Step, by_prompts: float) -> float:
    """Positions that a chunk's rows see between them: its mean row sees half of the chunk less than
    its last."""
    return min(by_prompts + (step.chunk - 1) / 2, step.prefill_contexts.last)
