"""The sampler: distribution, determinism, independence of the batch, log-probabilities."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.edits import LogitEdits
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.attention_node.sampling.row_errors import (
    NonFiniteLogits,
    NoSuchToken,
    NothingAllowed,
    OverflowedEdits,
)
from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling, uniform
from megainfer.compute.cpu.kernels import library
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.messages.requests import Submit
from tests.support.sampled import sample


def row(**wishes) -> SampleRow:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "position": 0}
    return SampleRow(**{**defaults, **wishes})


def chi_square(observed: Counter, expected: dict[int, float]) -> float:
    assert set(observed) <= set(expected)
    return sum((observed[token] - n) ** 2 / n for token, n in expected.items())


# 99.9 % quantiles of the chi-square distribution, by degrees of freedom
CRITICAL = {2: 13.82, 3: 16.27, 5: 20.52}


@pytest.mark.parametrize("varying", ["seed", "position"])
def test_frequencies_are_the_softmax(varying):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7, -0.4])
    draws = 6000
    requests = [row(temperature=0.7, **{varying: i}) for i in range(draws)]
    observed = Counter(sample(logits.expand(draws, -1), requests).token_ids)
    shares = torch.softmax(logits / 0.7, 0).tolist()
    assert chi_square(observed, {t: draws * p for t, p in enumerate(shares)}) < CRITICAL[5]


def test_frequencies_after_top_k_and_top_p():
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7, -0.4])
    draws = 4000
    # Of the best four (2, 4, 0, 3), whose shares are 0.43, 0.26, 0.18, 0.13, the first three.
    requests = [row(top_k=4, top_p=0.8, seed=i, position=i) for i in range(draws)]
    observed = Counter(sample(logits.expand(draws, -1), requests).token_ids)
    shares = torch.softmax(logits[[2, 4, 0]], 0).tolist()
    expected = {t: draws * p for t, p in zip((2, 4, 0), shares, strict=True)}
    assert chi_square(observed, expected) < CRITICAL[2]


def test_temperature_zero_is_greedy_whatever_else_is_asked():
    logits = torch.randn(4, 50)
    requests = [row(temperature=0.0, top_k=3, top_p=0.1, seed=i) for i in range(4)]
    assert sample(logits, requests).token_ids == logits.argmax(-1).tolist()


@st.composite
def edits(draw: st.DrawFn) -> LogitEdits:
    submit = Submit(
        request_id="a",
        prompt=draw(st.lists(st.integers(0, 1499), min_size=1, max_size=50)),
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        seed=0,
        max_tokens=99,
        stop_token_ids=[],
        presence_penalty=draw(st.sampled_from([0.0, 1.1])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        logit_bias=draw(st.dictionaries(st.integers(0, 1499), st.floats(-9, 9), max_size=3)),
    )
    token_ids = submit.prompt + draw(st.lists(st.integers(0, 1499), max_size=50))
    history = TokenHistory(len(submit.prompt), with_prompt=True)
    history.catch_up(token_ids)
    return LogitEdits(submit, token_ids, history)


wishes = st.builds(
    SampleRow,
    temperature=st.sampled_from([0.0, 1e-300, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1e-9, 0.2, 0.9, 1.0]),
    top_k=st.sampled_from([0, -1, 1, 7, 10_000]),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**20),
    logprobs=st.sampled_from([None, 0, 2, -1]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    edits=st.one_of(st.none(), edits()),
)


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(wishes, min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_a_row_does_not_depend_on_the_others(requests, seed):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that tokens tie, as they do in bfloat16.
    logits = (torch.randn(len(requests), 1500, generator=generator) * 4).round() / 2
    together = sample(logits, requests)
    for i, request in enumerate(requests):
        alone = sample(logits[i : i + 1], [request])
        assert alone.token_ids == together.token_ids[i : i + 1]
        assert alone.logprobs == together.logprobs[i : i + 1]


def test_a_nucleus_of_nothing_is_the_best_token():
    logits = torch.randn(8, 500)
    requests = [row(top_p=0.0, temperature=2.0, seed=i) for i in range(8)]
    assert sample(logits, requests).token_ids == logits.argmax(-1).tolist()


def test_same_seed_and_position_same_token_else_another():
    logits = torch.zeros(1, 100_000)
    draw = {
        (seed, position): sample(logits, [row(seed=seed, position=position)]).token_ids
        for seed in (-1, 0, 1, 2**63 - 1)
        for position in range(4)
    }
    assert draw[0, 2] == sample(logits, [row(seed=0, position=2)]).token_ids
    assert len({tuple(tokens) for tokens in draw.values()}) == len(draw)


def test_uniform_is_in_range_and_spread():
    numbers = [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert all(0 <= number <= 1 - 2**-52 for number in numbers)
    counts = Counter(int(number * 4) for number in numbers)
    assert chi_square(counts, dict.fromkeys(range(4), 1000.0)) < CRITICAL[3]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_name_their_rows(poison, temperature):
    logits = torch.randn(4, 20)
    logits[1, 3] = logits[3, 0] = poison
    with pytest.raises(NonFiniteLogits, match="rows 1, 3") as error:
        sample(logits, [row(temperature=temperature)] * 4)
    assert error.value.rows == (1, 3)


def edited(**wishes) -> LogitEdits:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_tokens": 9}
    submit = Submit(request_id="a", prompt=[0], stop_token_ids=[], **values, **wishes)
    only = AllowedTokens(submit.allowed_token_ids) if submit.allowed_token_ids else None
    return LogitEdits(submit, [0], listed=only)


def kernels_of(name):
    if name == "reference":
        return reference
    from megainfer.compute.cpu.kernels.attention import AttentionKernel

    return AttentionKernel(2)


needs_kernels = pytest.mark.skipif(not library.is_built(), reason="kernels are not built")
every_kernels = pytest.mark.parametrize(
    "name", ["reference", pytest.param("cpu", marks=needs_kernels)]
)


@every_kernels
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_rows_that_fail_leave_the_others_their_tokens(name, poison):
    """Plain, drawn and edited rows, each beside those that can't be sampled from."""
    logits = torch.randn(9, 70)
    logits[[1, 4, 7], 3] = poison
    biased = edited(logit_bias={5: 1.0})
    forbidden = edited(allowed_token_ids=[1], bad_words=[[1]])
    rows = [
        *[row(temperature=0.0, logprobs=1)] * 2,
        *[row(seed=i) for i in (2, 3, 4)],
        row(temperature=0.0, edits=biased, logprobs=2),
        row(seed=6, edits=forbidden),
        row(seed=7, edits=forbidden),
        row(seed=8, edits=biased),
    ]
    draws = begin_sampling(logits, rows, kernels_of(name), HOST)
    assert draws.done()
    output = draws.take()
    assert [(type(e), e.rows) for e in output.errors] == [
        (NonFiniteLogits, (1, 4, 7)),
        (NothingAllowed, (6,)),
    ]
    for i in (0, 2, 3, 5, 8):
        alone = begin_sampling(logits[i : i + 1], rows[i : i + 1], kernels_of(name), HOST).take()
        assert not alone.errors
        assert alone.token_ids == [output.token_ids[i]]
        assert alone.logprobs == [output.logprobs[i]]


def penalised(**wishes) -> LogitEdits:
    """Of a sequence that holds token 0."""
    edit = edited(**wishes)
    history = TokenHistory(1, with_prompt=True)
    history.catch_up([0])
    return LogitEdits(edit.submit, [0], history)


@every_kernels
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_edits_that_overflow_fail_their_own_rows(name, temperature):
    """Finite logits, and a penalty that a client may ask for: out of float32's range together."""
    logits = torch.randn(4, 70)
    logits[:3, 0] = 3e38
    harsh = penalised(repetition_penalty=0.01)
    rows = [
        row(temperature=temperature, seed=0, logprobs=2, edits=harsh),
        row(temperature=temperature, seed=1, edits=penalised(repetition_penalty=2.0)),
        row(temperature=temperature, seed=2, edits=harsh),
        row(temperature=temperature, seed=3, edits=harsh),
    ]
    output = begin_sampling(logits, rows, kernels_of(name), HOST).take()
    assert [(type(e), e.rows) for e in output.errors] == [(OverflowedEdits, (0, 2))]
    assert output.errors[0].client_error
    assert output.token_ids[1] == 0
    (alone,) = begin_sampling(logits[3:], rows[3:], kernels_of(name), HOST).take().token_ids
    assert output.token_ids[3] == alone


class Astray:
    """Kernels that draw what is no token."""

    best, scores = staticmethod(reference.best), staticmethod(reference.scores)

    def __init__(self, drawn: list[int]) -> None:
        self._drawn = drawn

    def draw(self, logits, wishes):
        return torch.tensor(self._drawn)


@pytest.mark.parametrize("logprobs", [None, 3])
def test_a_drawn_number_that_is_no_token_fails_its_row(logprobs):
    rows = [row(logprobs=logprobs)] * 4
    kernels = Astray([5, -3_145_730, 6, 7])
    output = begin_sampling(torch.randn(4, 7), rows, kernels, HOST).take()
    assert [(type(e), e.rows) for e in output.errors] == [(NoSuchToken, (1, 3))]
    assert "drew -3145730, 7 from a vocabulary of 7" in str(output.errors[0])
    assert output.token_ids[0] == 5


def test_logprobs_are_of_the_raw_logits():
    logits = torch.tensor([[0.0, 2.0, 1.0, -3.0]])
    raw = torch.log_softmax(logits[0], 0).tolist()
    request = {"temperature": 0.4, "top_k": 2, "seed": 5}

    def logprobs(n):
        output = sample(logits, [row(**request, logprobs=n)])
        return output.token_ids[0], output.logprobs[0]

    assert logprobs(None)[1] is None
    token, chosen = logprobs(0)
    assert chosen.values == pytest.approx({token: raw[token]})
    assert chosen.rank == [1, 2, 0, 3].index(token) + 1
    for every in (-1, 99):
        assert logprobs(every)[1].values == pytest.approx(dict(enumerate(raw)))
        assert list(logprobs(every)[1].values) == [1, 2, 0, 3]
    assert list(logprobs(3)[1].values) == [1, 2, 0]


def test_the_chosen_token_is_among_its_logprobs():
    logits = torch.tensor([[0.0, 0.1]]).expand(50, -1)
    output = sample(logits, [row(seed=i, logprobs=1) for i in range(50)])
    assert set(output.token_ids) == {0, 1}
    for token, best in zip(output.token_ids, output.logprobs, strict=True):
        assert list(best.values) == ([1] if token == 1 else [1, 0])
        assert best.rank == 2 - token


def test_no_rows_no_tokens():
    output = sample(torch.empty(0, 10), [])
    assert (output.token_ids, output.logprobs) == ([], [])


def test_processed_logprobs_are_of_what_is_drawn_from():
    """After edits, temperature, top_k and top_p; of what was cut nothing is told, and rows beside
    it have the model's own."""
    logits = torch.tensor([[0.3, -1.0, 1.2, 0.0, 0.7, -0.4]]).expand(4, -1)
    wishes = {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "logprobs": 6}
    biased = LogitEdits(
        Submit("a", [1], 0.0, 1.0, 0, 0, 9, [], logit_bias={1: 3.0}), [1], None, None, None
    )
    output = sample(
        logits,
        [
            row(processed=True, **wishes),
            row(**wishes),
            row(processed=True, temperature=0.0, logprobs=2, edits=biased),
            row(processed=True, temperature=2.0),
        ],
    )
    processed, own, greedy, unasked = output.logprobs
    kept = torch.log_softmax(logits[0, [2, 4, 0]] / 0.7, 0).tolist()
    assert processed.values == pytest.approx(dict(zip((2, 4, 0), kept, strict=True)), abs=1e-6)
    assert own.values == pytest.approx(
        dict(enumerate(torch.log_softmax(logits[0], 0).tolist())), abs=1e-6
    )
    edited = logits[0] + torch.tensor([0, 3.0, 0, 0, 0, 0])
    after = torch.log_softmax(edited, 0).tolist()
    assert output.token_ids[2] == 1
    assert greedy.values == pytest.approx({1: after[1], 2: after[2]}, abs=1e-6)
    assert greedy.rank == 1
    assert unasked is None


def test_processed_logprobs_of_a_row_that_fails_disturb_nobody():
    logits = torch.tensor([[math.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    rows = [row(processed=True, logprobs=1), row(processed=True, logprobs=1)]
    output = begin_sampling(logits, rows, reference, HOST).take()
    assert [type(error) for error in output.errors] == [NonFiniteLogits]
    own = torch.log_softmax(logits[1], 0).tolist()
    token = output.token_ids[1]
    assert output.logprobs[1].values[token] == pytest.approx(own[token], abs=1e-6)
