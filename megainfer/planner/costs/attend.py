"""What attention does beside its dense products: it reads a cache, or a state, and computes there.

FLOPs are those of products and of the recurrence, a multiplication and an addition each; softmax,
rotations, norms and activations aren't counted. Bytes are what one pass over the cache moves.
"""

from dataclasses import dataclass
from math import ceil, prod

from megainfer.models.spec import AttentionSpec, DeltaNetSpec, MlaSpec
from megainfer.models.spec.model import STATE_ELEMENT_BYTES
from megainfer.planner.costs.step import Contexts, Step

FLOPS_OF_A_STATE = 7
"""Of each element and token: decayed (1), read with the key (2), added to (2), read with the query
(2)."""


@dataclass(frozen=True, slots=True)
class CacheWork:
    """FLOPs, and bytes read and written. queries: rows that meet the same position at once, which
    is how well arithmetic can be used."""

    flops: float
    bytes: float
    queries: float

    def __add__(self, other: "CacheWork") -> "CacheWork":
        return CacheWork(
            self.flops + other.flops, self.bytes + other.bytes, max(self.queries, other.queries)
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
    element_bytes: int,
    ranks: int = 1,
    expands: bool = False,
) -> CacheWork:
    """Of one layer, of one of `ranks` ranks that share its heads.

    element_bytes: of the cache. Decoded rows read what they see, each for itself; a chunk of a
    prompt reads once what its last row sees. expands: latent attention takes whichever form has
    fewer FLOPs, as on CPUs; else always the absorbed one, as on GPUs.
    """
    if isinstance(attention, DeltaNetSpec):
        return _recurrence(attention, step, ranks)
    if isinstance(attention, MlaSpec):
        return _latent(attention, step, element_bytes, ranks, expands)
    heads = ceil(attention.num_heads / ranks)
    kv_heads = ceil(attention.num_kv_heads / ranks)
    position = 2 * kv_heads * attention.head_dim * element_bytes
    seen, seen_by_prompts = _visible_by_kind(attention, step)
    read = step.decode_rows * seen + _chunks(step) * _read_by_a_chunk(step, seen_by_prompts)
    met = step.decode_rows * seen + step.prefill_rows * seen_by_prompts
    shared = heads / kv_heads
    return CacheWork(
        4 * heads * attention.head_dim * met,
        position * (read + step.rows),
        _queries(step, shared),
    )


def _latent(
    spec: MlaSpec, step: Step, element_bytes: int, ranks: int, expands: bool
) -> CacheWork:
    """Every rank has all latents. The projections to latents and from them are dense products."""
    heads = ceil(spec.num_heads / ranks)
    seen, seen_by_prompts = _visible_by_kind(spec, step)
    read = step.decode_rows * seen + _chunks(step) * _read_by_a_chunk(step, seen_by_prompts)
    absorbed = 2 * heads * (spec.latent_dim + spec.kv_lora_rank)
    flops = step.decode_rows * seen * absorbed
    flops += _prompts_flops(spec, step, seen_by_prompts, heads, absorbed, expands)
    bytes_ = spec.latent_dim * element_bytes * (read + step.rows)
    work = CacheWork(flops, bytes_, _queries(step, heads))
    return work if spec.indexer is None else work + _indexed(spec, step, element_bytes)


def _prompts_flops(
    spec: MlaSpec, step: Step, seen: float, heads: int, absorbed: int, expands: bool
) -> float:
    """Beyond what the dense product with `kv_up` counts, once a row: expanded, it is one of every
    position that a chunk sees instead."""
    flops = step.prefill_rows * seen * absorbed
    if not expands or spec.indexer is not None or not step.prefill_rows:
        return flops
    up = 2 * heads * spec.kv_lora_rank * (spec.nope_dim + spec.v_dim)
    positions = _chunks(step) * _read_by_a_chunk(step, seen)
    met = step.prefill_rows * seen * 2 * heads * (spec.qk_dim + spec.v_dim)
    return min(flops, met + up * (positions - step.prefill_rows))


def _indexed(spec: MlaSpec, step: Step, element_bytes: int) -> CacheWork:
    """The indexer meets all positions, and every rank computes all of it."""
    assert spec.indexer is not None
    size = spec.indexer.head_dim
    seen, of_prompts = step.contexts.mean, step.prefill_contexts.mean
    met = step.decode_rows * seen + step.prefill_rows * of_prompts
    read = step.decode_rows * seen + _chunks(step) * _read_by_a_chunk(step, of_prompts)
    # Products with the queries, and the weighted sum over heads.
    flops = 2 * spec.indexer.num_heads * (size + 1) * met
    heads = spec.indexer.num_heads
    return CacheWork(flops, size * element_bytes * (read + step.rows), _queries(step, heads))


def _recurrence(spec: DeltaNetSpec, step: Step, ranks: int) -> CacheWork:
    """Decoded rows read and write their states, a chunk of a prompt once."""
    share = ceil(spec.key_heads / ranks) / spec.key_heads
    elements = spec.value_heads * spec.key_dim * spec.value_dim
    flops = FLOPS_OF_A_STATE * elements + 2 * spec.taps * spec.channels
    states = sum(map(prod, spec.state_shapes)) * STATE_ELEMENT_BYTES
    passes = step.decode_rows + _chunks(step)
    return CacheWork(flops * share * step.rows, 2 * states * share * passes, 1.0)


def _visible_by_kind(attention: AttentionSpec | MlaSpec, step: Step) -> tuple[float, float]:
    """Of decoded rows, and of those of prompts."""
    return visible(attention, step.contexts), visible(attention, step.prefill_contexts)


def _chunks(step: Step) -> float:
    return step.prefill_rows / step.chunk


def _read_by_a_chunk(step: Step, seen: float) -> float:
    """Positions that a chunk's rows see between them: its mean row sees half of the chunk less than
    its last."""
    return min(seen + (step.chunk - 1) / 2, step.prefill_contexts.last)


def _queries(step: Step, heads: float) -> float:
    """Rows that meet a position at once: all heads that share it, of all rows of a chunk; the mean
    over rows of both kinds."""
    if not step.rows:
        return heads
    return heads * (step.decode_rows + step.prefill_rows * step.chunk) / step.rows
