"""What a step's tokens see, against counting it token by token."""

from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.models.spec import (
    CACHE_FORMATS,
    AttentionSpec,
    CacheFormat,
    DeltaNetSpec,
    IndexerSpec,
    MlaSpec,
    RopeSpec,
)
from megainfer.planner.costs import Contexts, Step
from megainfer.planner.costs.attend import cache_work

GROUPED = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=4, rope=None)
LATENT = MlaSpec(4, 16, 12, nope_dim=6, rope_dim=2, v_dim=5, rope=RopeSpec(1e4), scale=1.0)
NET = DeltaNetSpec(key_heads=2, value_heads=4, key_dim=3, value_dim=5, taps=4)

spans = st.tuples(st.integers(1, 60), st.integers(0, 60))
sizes = st.integers(1, 80)


@given(spans, sizes)
def test_means_are_those_of_single_tokens(span, size):
    first, last = span[0], span[0] + span[1]
    contexts, seen = Contexts(first, last), range(first, last + 1)
    assert contexts.mean == pytest.approx(mean(seen))
    assert contexts.mean_within(size) == pytest.approx(mean(min(n, size) for n in seen))
    chunked = mean((n - 1) % size + 1 for n in seen)
    assert contexts.mean_in_chunk(size) == pytest.approx(chunked)


@pytest.mark.parametrize("span", [(0, 3), (5, 4)])
def test_contexts_that_cannot_be(span):
    with pytest.raises(ConfigError, match="a token sees at least 1"):
        Contexts(*span)


def test_steps_that_cannot_be():
    with pytest.raises(ConfigError, match="none can be negative"):
        Step(-1, Contexts.at(1))


@given(st.integers(1, 40), st.integers(2, 30))
def test_a_steady_step_is_the_mean_over_a_whole_answer(prompt, answer):
    """Requests that began one step after the other: the positions that each is at."""
    decoded = [prompt + token for token in range(1, answer)]
    step = Step.steady(len(decoded), prompt, answer, prefill=True)
    assert step.contexts.mean == pytest.approx(mean(decoded))
    # In as many steps, one request ends and one prompt is computed.
    assert step.prompts == pytest.approx(1)
    assert step.prefill_rows == pytest.approx(prompt)
    assert step.prefill_contexts.mean == pytest.approx(mean(range(1, prompt + 1)))
    assert step.sampled == pytest.approx(len(decoded) + 1)
    assert Step.steady(7, prompt, answer).rows == 7


def by_hand(attention: AttentionSpec | MlaSpec, sees: int) -> range:
    """Positions that a token at the end of `sees` positions attends to."""
    own = sees - 1
    if isinstance(attention, AttentionSpec) and attention.window is not None:
        return range(max(0, sees - attention.window), sees)
    if isinstance(attention, AttentionSpec) and attention.chunk is not None:
        return range(own // attention.chunk * attention.chunk, sees)
    return range(sees)


@pytest.mark.parametrize("shape", [{}, {"window": 5}, {"chunk": 4}], ids=str)
@given(span=spans)
def test_decoding_reads_what_every_row_sees(shape, span):
    attention, rows = replace(GROUPED, **shape), span[1] + 1
    contexts = Contexts(span[0], span[0] + span[1])
    work = cache_work(attention, Step(rows, contexts), CacheFormat(2))
    seen = [len(by_hand(attention, n)) for n in range(span[0], span[0] + rows)]
    head = attention.head_dim
    products = sum(
        2 * head + 2 * head  # a score, and a share of a value
        for n in seen
        for _ in range(n)
        for _ in range(attention.num_heads)
    )
    assert work.flops == pytest.approx(products)
    a_token = 2 * attention.num_kv_heads * head * 2
    assert work.bytes == pytest.approx(a_token * (sum(seen) + rows))


@given(chunk=st.integers(1, 9), count=st.integers(1, 6))
def test_a_prompt_reads_its_past_once_a_chunk(chunk, count):
    tokens = chunk * count
    step = Step(0, Contexts.at(1), tokens, Contexts(1, tokens), chunk)
    work = cache_work(GROUPED, step, CacheFormat(1))
    ends = [chunk * (n + 1) for n in range(count)]
    a_token = 2 * GROUPED.num_kv_heads * GROUPED.head_dim
    assert work.bytes == pytest.approx(a_token * (sum(ends) + tokens))
    pairs = sum(range(1, tokens + 1))
    assert work.flops == pytest.approx(4 * GROUPED.num_heads * GROUPED.head_dim * pairs)


def test_latents_are_read_once_for_all_heads():
    work = cache_work(LATENT, Step(3, Contexts.at(10)), CacheFormat(2))
    assert work.bytes == (16 + 2) * 2 * 3 * (10 + 1)
    assert work.flops == 2 * 4 * 3 * 10 * ((16 + 2) + 16)
    # Each rank has all latents and some of the heads.
    half = cache_work(LATENT, Step(3, Contexts.at(10)), CacheFormat(2), ranks=2)
    assert (half.bytes, half.flops) == (work.bytes, work.flops / 2)


@given(chunk=st.integers(1, 40), count=st.integers(1, 5))
def test_latents_are_expanded_where_that_is_cheaper(chunk, count):
    tokens = chunk * count
    step = Step(0, Contexts.at(1), tokens, Contexts(1, tokens), chunk)
    absorbed = cache_work(LATENT, step, CacheFormat(2)).flops
    pairs, positions = tokens * (tokens + 1) / 2, sum(chunk * (n + 1) for n in range(count))
    # Every position that a chunk sees is projected, instead of its own rows, which dense products
    # count already.
    expanded = 2 * 4 * (pairs * (8 + 5) + (positions - tokens) * 16 * (6 + 5))
    work = cache_work(LATENT, step, CacheFormat(2), expands=True)
    assert work.flops == pytest.approx(min(absorbed, expanded))


def test_an_indexer_meets_all_and_attention_what_it_chooses():
    indexer = IndexerSpec(num_heads=3, head_dim=8, top_k=4)
    step = Step(2, Contexts.at(10))
    plain = cache_work(LATENT, Step(2, Contexts.at(4)), CacheFormat(2))
    work = cache_work(replace(LATENT, indexer=indexer), step, CacheFormat(2))
    assert work.flops == plain.flops + 2 * 10 * 3 * (2 * 8 + 2)
    assert work.bytes == plain.bytes + 2 * (10 + 1) * 8 * 2


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_codes_of_eight_bits_are_read_with_their_scales(name):
    step, kept = Step(3, Contexts.at(10)), CACHE_FORMATS[name]
    a_head = GROUPED.head_dim + 2
    work = cache_work(GROUPED, step, kept)
    assert work.bytes == 2 * GROUPED.num_kv_heads * a_head * 3 * (10 + 1)
    shared = cache_work(GROUPED, step, kept, ranks=GROUPED.num_kv_heads)
    assert shared.bytes == 2 * a_head * 3 * (10 + 1)
    latents = cache_work(LATENT, step, kept)
    assert latents.bytes == (16 + 2 + 2 * 2) * 3 * (10 + 1)


def test_a_state_is_read_and_written_whatever_the_context():
    states = 4 * (3 * (2 * 2 * 3 + 4 * 5) + 4 * 3 * 5)
    for context in (1, 1000):
        work = cache_work(NET, Step(5, Contexts.at(context)), CacheFormat(2))
        assert work.bytes == 2 * states * 5
        assert work.flops == 5 * (7 * 4 * 3 * 5 + 2 * 4 * (2 * 6 + 20))
    # A prompt's state stays where it is until the end of a chunk.
    prompt = Step(0, Contexts.at(1), 12, Contexts(1, 12), chunk=4)
    assert cache_work(NET, prompt, CacheFormat(2)).bytes == 2 * states * 3
