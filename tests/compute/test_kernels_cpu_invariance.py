"""A row's result is the same bits whatever it is computed with: batch, messages, threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.experts import ExpertsShape
from megainfer.config import WEIGHT_DTYPES
from tests.support.kernel_experts import Experts, levels, run, run_split

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

SHAPE = ExpertsShape(6, 150, 70, 2)

every_level = pytest.mark.parametrize("level", levels())
every_dtype = pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)


@every_level
@every_dtype
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16])
def test_over_batch_sizes(level, weight_dtype, row_dtype):
    """Every group size of every kernel: 1 to 40 rows of one expert, and each row alone."""
    experts = Experts(SHAPE)
    layer = experts.packed(weight_dtype, level)
    x, (ids, weights) = experts.rows(40, row_dtype), experts.choices(40)
    ids[:, 0] = 3
    alone = torch.cat([run(layer, x[i, None], ids[i, None], weights[i, None]) for i in range(40)])
    for count in range(1, 41):
        assert torch.equal(run(layer, x[:count], ids[:count], weights[:count]), alone[:count])


@every_dtype
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_over_order_and_messages(weight_dtype, data):
    experts = Experts(SHAPE, seed=1)
    layer = experts.packed(weight_dtype, levels()[-1])
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    count = sum(sizes)
    x, (ids, weights) = experts.rows(count), experts.choices(count)
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    whole = run(layer, x, ids, weights)
    assert torch.equal(run_split(layer, x, ids, weights, sizes), whole)
    assert torch.equal(run(layer, x[order], ids[order], weights[order]), whole[order])


@every_level
@every_dtype
@pytest.mark.parametrize("threads", [2, 3, 9])
def test_over_threads(level, weight_dtype, threads):
    experts = Experts(SHAPE)
    one, many = (experts.packed(weight_dtype, level, n) for n in (1, threads))
    for count in (1, 5, 33):
        x, (ids, weights) = experts.rows(count), experts.choices(count)
        for _ in range(3):
            assert torch.equal(run(many, x, ids, weights), run(one, x, ids, weights))
