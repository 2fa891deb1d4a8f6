"""What requests change in their logits, against oracles written from the definitions."""

import math
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.edits import LogitEdits, edits_of_rows
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.attention_node.sampling.row_errors import NothingAllowed
from megainfer.attention_node.sampling.sampler import SampleRow
from megainfer.attention_node.scheduling.sequence import Sequence
from megainfer.compute.bitmask import Bitmask, words_for
from megainfer.compute.reference.kernels import edit
from megainfer.messages.requests import Submit
from megainfer.sampling import MAX_BAD_WORD_CHARACTERS, MAX_BAD_WORDS, MAX_LOGIT_BIAS
from tests.support.sampled import sample

VOCABULARY = 40
tokens = st.integers(0, VOCABULARY - 1)


def submit(prompt: list[int], **wishes: Any) -> Submit:
    plain = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_tokens": 99}
    return Submit(request_id="a", prompt=prompt, **{**plain, "stop_token_ids": [], **wishes})


def edits_of(request: Submit, outputs: list[int], allowed: Bitmask | None = None):
    """As the node makes them, for a sequence that got its outputs one by one."""
    sequence = Sequence(request, arrival=0, block_size=16)
    for token in outputs:
        if sequence.history is not None:
            sequence.history.catch_up(sequence.token_ids)
        sequence.token_ids.append(token)
    if sequence.history is not None:
        sequence.history.catch_up(sequence.token_ids)
    return LogitEdits(request, sequence.token_ids, sequence.history, sequence.listed, allowed)


def oracle(
    logits: np.ndarray, request: Submit, outputs: list[int], allowed: set[int] | None
) -> np.ndarray:
    """One token at a time, in the documented order, in float32."""
    result = logits.copy()
    for t in range(VOCABULARY):
        may = allowed is None or t in allowed
        may &= not request.allowed_token_ids or t in request.allowed_token_ids
        for word in request.bad_words:
            before = word[:-1]
            matches = outputs[len(outputs) - len(before) :] == before
            may &= not (word[-1] == t and matches)
        may &= not (len(outputs) < request.min_tokens and t in request.stop_token_ids)
        value = result[t] if may else np.float32(-np.inf)
        value += np.float32(request.logit_bias.get(t, 0.0))
        if t in request.prompt or t in outputs:
            penalty = np.float32(request.repetition_penalty)
            value = value / penalty if value > 0 else value * penalty
        value -= np.float32(request.frequency_penalty) * np.float32(outputs.count(t))
        value -= np.float32(request.presence_penalty) * np.float32(t in outputs)
        result[t] = value
    return result


requests = st.builds(
    submit,
    prompt=st.lists(tokens, min_size=1, max_size=8),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.lists(st.integers(0, VOCABULARY + 5), max_size=3),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.6]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, 2.5, 0.1]), max_size=4),
    allowed_token_ids=st.one_of(st.just([]), st.lists(tokens, min_size=30, unique=True)),
    bad_words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3),
)
rows = st.tuples(
    st.one_of(st.none(), requests),
    st.lists(st.integers(0, 5), max_size=12),
    st.one_of(st.none(), st.sets(tokens, min_size=30)),
)


def bits(allowed: set[int] | None) -> Bitmask | None:
    if allowed is None:
        return None
    words = np.zeros(words_for(VOCABULARY), dtype=np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


@settings(max_examples=80, deadline=None)
@given(batch=st.lists(rows, min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_edits_are_the_definitions_bit_by_bit_whatever_else_is_in_the_batch(batch, seed):
    logits = torch.randn(len(batch), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    edited = logits.clone()
    edits = [r and edits_of(r, out, bits(allowed)) for r, out, allowed in batch]
    edit(edited, edits_of_rows(edits, VOCABULARY))
    for row, (request, outputs, allowed) in enumerate(batch):
        raw = logits[row].numpy()
        expected = raw if request is None else oracle(raw, request, outputs, allowed)
        np.testing.assert_array_equal(edited[row].numpy(), expected)


def test_penalties_are_those_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    request = submit([3, 5, 5], repetition_penalty=1.7)
    edits = edits_of(request, [7, 3])
    logits = torch.randn(1, VOCABULARY)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([edits.token_ids]), logits)
    edit(logits := logits.clone(), edits_of_rows([edits], VOCABULARY))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_min_p_keeps_what_transformers_keeps():
    from transformers import MinPLogitsWarper

    logits = torch.randn(1, VOCABULARY) * 2
    kept = MinPLogitsWarper(0.13)(None, logits / 0.8) > -math.inf
    drawn = sample(
        logits.expand(4000, -1),
        [SampleRow(0.8, 1.0, 0, seed=i, position=0, min_p=0.13) for i in range(4000)],
    ).token_ids
    # Each kept token has at least 0.13 of the best one's share, so it comes in 4000 draws.
    assert set(drawn) == set(kept[0].nonzero().flatten().tolist())


def test_min_p_goes_before_top_p():
    # Shares 0.5, 0.3, 0.2: min_p 0.5 leaves 0.625 and 0.375, of which the first reaches 0.6.
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(200, -1)
    drawn = sample(logits, [SampleRow(1.0, 0.6, 0, i, 0, min_p=0.5) for i in range(200)]).token_ids
    assert set(drawn) == {0}


def test_greedy_takes_the_best_after_the_edits_and_logprobs_are_from_before():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    edits = edits_of(submit([0], presence_penalty=2.0), [1])
    output = sample(logits, [SampleRow(0.0, 1.0, 0, 0, 2, logprobs=1, edits=edits)])
    assert output.token_ids == [2]
    (scores,) = output.logprobs
    raw = torch.log_softmax(logits[0], 0).tolist()
    assert scores.values == pytest.approx({1: raw[1], 2: raw[2]})
    assert scores.rank == 2
    assert logits.tolist() == [[1.0, 3.0, 2.0]]


def test_a_request_that_forbids_everything_is_named():
    everything = edits_of(submit([0], allowed_token_ids=[1], bad_words=[[1]]), [])
    plain = SampleRow(0.0, 1.0, 0, 0, 1)
    for temperature in (0.0, 1.0):
        with pytest.raises(NothingAllowed, match="no token is left") as error:
            sample(
                torch.zeros(3, 4),
                [plain, plain, SampleRow(temperature, 1.0, 0, 0, 1, edits=everything)],
            )
        assert error.value.rows == (2,)


def test_a_history_counts_only_what_is_new():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            given = super().__getitem__(index)
            self.reads += len(given) if isinstance(index, slice) else 1
            return given

    ids = Counted([4, 4, 9])
    history = TokenHistory(num_prompt=3, with_prompt=True)
    for token in (9, 2, 9):
        history.catch_up(ids)
        ids.append(token)
    history.catch_up(ids)
    history.catch_up(ids)
    assert dict(zip(history.tokens, history.generated, strict=True)) == {4: 0, 9: 2, 2: 1}
    assert ids.reads == 6


@pytest.mark.parametrize("vocabulary", [31, 32, 33, VOCABULARY])
def test_the_mask_of_allowed_tokens_is_made_once(vocabulary):
    listed = {0, 7, vocabulary - 1}
    allowed = AllowedTokens(sorted(listed) * 2)
    mask = allowed.mask(vocabulary)
    assert mask.shape == (words_for(vocabulary),)
    assert {t for t in range(vocabulary) if mask[t // 32] >> (t % 32) & 1} == listed
    assert allowed.mask(vocabulary) is mask


def test_a_history_of_all_at_once_is_that_of_one_by_one():
    generator = np.random.default_rng(3)
    ids = generator.integers(0, 20, 60).tolist()
    for with_prompt in (True, False):
        once, stepwise = (TokenHistory(40, with_prompt) for _ in range(2))
        once.catch_up(ids)
        for end in range(40, 61):
            stepwise.catch_up(ids[:end])
        assert (once.tokens, once.generated) == (stepwise.tokens, stepwise.generated)
        counts = dict(zip(once.tokens, once.generated, strict=True))
        assert {t: ids[40:].count(t) for t in ids[0 if with_prompt else 40 :]} == counts


class Looked(list[int]):
    """Tokens that count how many of them were looked at."""

    seen = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.seen += len(found) if isinstance(place, slice) else 1
        return found


@pytest.mark.parametrize("length", [1000, 100_000])
def test_bad_words_cost_what_they_are_long_however_long_the_text_is(length):
    """Of the most and longest ones that a request may have, once the last token fits all of them,
    and once none."""
    words = [[7] * (MAX_BAD_WORD_CHARACTERS - 1) + [n] for n in range(MAX_BAD_WORDS)]
    request = submit([1], bad_words=words)
    fitting, others = Looked([1, *[7] * length]), Looked([1, *[7] * (length - 1), 8])
    assert set(LogitEdits(request, fitting).banned(200)) == set(range(MAX_BAD_WORDS))
    assert fitting.seen <= MAX_BAD_WORDS * MAX_BAD_WORD_CHARACTERS
    assert set(LogitEdits(request, others).banned(200)) == set()
    assert others.seen <= MAX_BAD_WORDS


def test_the_dearest_edits_of_a_full_step_take_a_bounded_time():
    """A client's rows, all with as many biases and bad words as may be, each of which fits."""
    rows, size = 64, 32_000
    words = [[7] * (MAX_BAD_WORD_CHARACTERS - 1) + [n] for n in range(MAX_BAD_WORDS)]
    bias = dict.fromkeys(range(1000, 1000 + MAX_LOGIT_BIAS), 0.5)
    request = submit([1], bad_words=words, logit_bias=bias)
    edits = [LogitEdits(request, [1, *[7] * 1000]) for _ in range(rows)]
    logits = torch.zeros(rows, size)
    began = process_time()
    edit(logits, edits_of_rows(edits, size))
    assert process_time() - began < 1  # it takes 0.05 s
    assert torch.isinf(logits).sum() == rows * MAX_BAD_WORDS
    assert logits[:, 1000 : 1000 + MAX_LOGIT_BIAS].eq(0.5).all()
