"""The sampler over the token kernels, interpreted: on the host, and on a device that is late."""

from array import array

import pytest
import torch

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.edits import LogitEdits
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.attention_node.sampling.row_errors import NonFiniteLogits, NothingAllowed
from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.compute.gpu.tokens import GpuTokens
from megainfer.compute.reference.tokens import ReferenceTokens
from megainfer.device import HOST
from megainfer.messages.requests import Submit
from tests.support.fake_backend import TorchWork
from tests.support.fake_device import FakeDevice

SIZE = 90


def row(position: int, edits: LogitEdits | None = None, **wishes) -> SampleRow:
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 3}
    return SampleRow(**{**usual, **wishes}, position=position, edits=edits)


def edits(**wishes) -> LogitEdits:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_tokens": 9}
    submit = Submit(request_id="a", prompt=[0, 7], stop_token_ids=[], **{**values, **wishes})
    listed = AllowedTokens(submit.allowed_token_ids) if submit.allowed_token_ids else None
    history = TokenHistory(2, with_prompt=True)
    history.catch_up([0, 7, 8, 8])
    return LogitEdits(submit, [0, 7, 8, 8], history, listed)


@pytest.fixture
def rows():
    """Of every kind; 5 and 6 can't be sampled from."""
    return [
        row(0, temperature=0.0, logprobs=2),
        row(1, logprobs=0),
        row(2, top_p=0.8, top_k=9),
        row(3, edits(repetition_penalty=1.4, presence_penalty=0.5), logprobs=-1),
        row(4, edits(logit_bias={5: 3.0}, bad_words=[[9]]), temperature=0.0),
        row(5),  # NaN
        row(6, edits(allowed_token_ids=[1], bad_words=[[1]])),
        row(7, edits(allowed_token_ids=[3, 4, 88]), top_p=0.9, logprobs=3),
    ]


@pytest.fixture
def logits(rows):
    logits = torch.randn(len(rows), SIZE) * 4
    logits[5, 80] = torch.nan
    return logits


@pytest.fixture
def expected(logits, rows):
    return begin_sampling(logits, rows, ReferenceTokens(HOST), HOST).take()


def assert_same(output, expected) -> None:
    assert [(type(e), e.rows) for e in output.errors] == [
        (NonFiniteLogits, (5,)),
        (NothingAllowed, (6,)),
    ]
    for i in (0, 1, 2, 3, 4, 7):
        assert output.token_ids[i] == expected.token_ids[i]
        ours, theirs = output.logprobs[i], expected.logprobs[i]
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.rank == theirs.rank
            assert list(ours.values) == list(theirs.values)
            assert ours.values == pytest.approx(theirs.values, abs=3e-6)


def test_rows_of_every_kind_are_sampled_as_by_the_reference(logits, rows, expected):
    assert_same(begin_sampling(logits, rows, GpuTokens(HOST), HOST).take(), expected)


@pytest.mark.parametrize("seed", range(2))
def test_sampling_is_begun_without_waiting_for_the_device(logits, rows, expected, seed):
    """What the kernels read and write is told truly, so that no order is missing."""
    device = FakeDevice(seed)
    with TorchWork(device):
        given = device.upload(logits)
        device.synchronize()
        with device.on(device.stream()):
            draws = begin_sampling(given, rows, GpuTokens(device), device)
        looks = 0
        while not draws.done():
            looks += 1
        assert looks
        assert_same(draws.take(), expected)


def test_a_history_may_grow_while_the_device_is_late(logits, rows, expected):
    device = FakeDevice()
    with TorchWork(device):
        draws = begin_sampling(device.upload(logits), rows, GpuTokens(device), device)
        history = rows[3].edits.history
        before = array("q", history.tokens)
        history.catch_up([0, 7, 8, 8, 50, 60])
        assert len(history.tokens) > len(before)
        assert_same(draws.take(), expected)
