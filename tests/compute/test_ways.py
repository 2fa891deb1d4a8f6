"""Which replica a token goes to: by the token alone, and as many to each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.ways import ways_of
from megainfer.topology import WAYS
from tests.support.plans import LIVED_IN


@given(token=st.integers(0, 2**18), position=st.integers(0, 2**20), others=st.integers(1, 5))
def test_a_token_has_its_way_whatever_else_is_in_the_batch(token, position, others):
    alone = build_batch([ChunkInput([token], position, [0] * (position // 16 + 1), False)])
    chunks = [ChunkInput([token + 7, 3], 0, [1], False) for _ in range(others)]
    beside = build_batch(
        [*chunks, ChunkInput([token], position, [0] * (position // 16 + 1), False)]
    )
    assert int(alone.ways) == int(beside.ways[0])
    assert 0 <= int(alone.ways) < WAYS


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [
        (torch.arange(16000), torch.full((16000,), 77)),  # requests in step
        (torch.full((16000,), 5), torch.arange(16000)),  # a text of one word
        (torch.arange(16000), torch.arange(16000)),
        (torch.randint(32000, (16000,)), torch.randint(4096, (16000,))),
    ],
)
def test_every_way_is_taken_as_often(tokens, positions):
    counts = torch.bincount(ways_of(tokens, positions), minlength=WAYS)
    assert counts.sum() == 16000
    assert counts.min() > 800
    assert counts.max() < 1200


@pytest.mark.parametrize("plan", [kernels.scatter_plan, kernels.padded_plan])
def test_choices_go_the_way_of_their_token(plan):
    homes = kernels.expert_homes(LIVED_IN, 0)
    ids = torch.rand(40, 4).argsort(-1)[:, :2]
    weights, ways = torch.rand(40, 2), torch.arange(40) % WAYS
    found = {}
    for node, part in enumerate(plan(weights, ids, homes, ways)):
        for row, slots, own in zip(*map(torch.Tensor.tolist, part[:3]), strict=True):
            found.update({(row, node, s): w for s, w in zip(slots, own, strict=True) if s >= 0})
    expected = {
        (row, *LIVED_IN.homes(0)[expert][int(ways[row])]): float(weights[row, k])
        for row in range(40)
        for k, expert in enumerate(ids[row].tolist())
    }
    assert found == expected
