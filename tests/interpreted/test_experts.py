"""A layer's experts on a GPU, interpreted, against a loop over rows and choices in float64."""

from dataclasses import replace

import pytest
import torch

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.formats.registry import FORMATS
from megainfer.compute.reference.experts import ReferenceLayerExperts
from megainfer.errors import ConfigError
from megainfer.models.spec import Activation, ActivationSpec
from tests.support.gpu_experts import GpuExperts, forward
from tests.support.interpreted import rows_alone
from tests.support.kernel_experts import relative_error

SHAPES = [
    ExpertsShape(5, 37, 29, 2),  # multiples of nothing
    ExpertsShape(3, 1, 1, 1),
    ExpertsShape(4, 64, 96, 3),
    ExpertsShape(2, 130, 70, 1),
]
SMALL = ExpertsShape(4, 40, 24, 2)
OTHERS = {
    "gpt-oss": replace(
        SMALL, activation=ActivationSpec(limit=0.7, alpha=1.702, up_offset=1.0), bias=True
    ),
    "limit": replace(SMALL, activation=ActivationSpec(limit=0.5)),
    "gelu": replace(SMALL, activation=ActivationSpec(Activation.GELU)),
    "gelu tanh": replace(SMALL, activation=ActivationSpec(Activation.GELU_TANH)),
    "weight on input": replace(SMALL, weight_on_input=True),
    "weight on input, bias": replace(SMALL, weight_on_input=True, bias=True),
}
BFLOAT16_ERROR = 8e-3
"""Rows, weights, what goes into down and what comes out are each rounded once."""

every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_get_what_a_loop_in_float64_gives(shape, rows):
    experts = GpuExperts(shape)
    x, ids, weights = experts.rows(rows), experts.any_ids(rows), torch.rand(rows, shape.top_k)
    expected = experts.expected(x, ids, weights)
    actual = forward(experts.layer(), x, ids, weights)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", OTHERS.values(), ids=OTHERS)
def test_other_experts(shape):
    experts = GpuExperts(shape)
    x, ids, weights = experts.rows(9), experts.any_ids(9), torch.rand(9, shape.top_k)
    expected = experts.expected(x, ids, weights)
    actual = forward(experts.layer(), x, ids, weights)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)


@every_format
@pytest.mark.parametrize("rows", [5, 60])  # few and many rows an expert have other tiles
def test_every_format_is_multiplied_as_what_it_means(name, rows):
    experts = GpuExperts(ExpertsShape(2, 150, 136, 1, bias=True), name)
    x, (ids, weights) = experts.rows(rows), experts.choices(rows)
    expected = experts.expected(x, ids, weights)
    actual = forward(experts.layer(), x, ids, weights)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=2e-5)


@every_format
def test_messages_in_bfloat16(name):
    experts = GpuExperts(ExpertsShape(3, 136, 130, 2), name)
    x, (ids, weights) = experts.rows(7, torch.bfloat16), experts.choices(7)
    actual = forward(experts.layer(), x, ids, weights)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, experts.expected(x, ids, weights)) < BFLOAT16_ERROR


def test_what_is_rounded_is_what_the_reference_rounds():
    """Of experts in bfloat16; their sums, in float32, come in another order."""
    experts = GpuExperts(replace(SMALL, weight_on_input=True), "bfloat16")
    reference = ReferenceLayerExperts(experts.shape, torch.bfloat16)
    for expert in range(experts.shape.experts):
        own = experts.gate_up[expert], experts.down[expert]
        reference.put(expert, reference.prepare(*own))
    x, (ids, weights) = experts.rows(12, torch.bfloat16), experts.choices(12)
    expected = torch.empty_like(x)
    reference.forward([x], [ids], [weights], [expected])
    actual = forward(experts.layer(), x, ids, weights)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("invariant", [False, True])
def test_one_expert_may_get_all_rows(invariant):
    experts = GpuExperts(SMALL, invariant=invariant)
    layer, x = experts.layer(), experts.rows(70)
    ids, weights = torch.full((70, 2), 2, dtype=torch.int32), torch.rand(70, 2)
    expected = experts.expected(x, ids, weights)
    torch.testing.assert_close(forward(layer, x, ids, weights), expected.float())


def test_no_rows_no_messages_and_nobody_chosen():
    experts = GpuExperts(SMALL)
    layer = experts.layer()
    assert layer.forward([], [], [], []).tolist() == [0] * 4
    x, weights = experts.rows(0), torch.rand(0, 2)
    assert layer.forward([x], [experts.any_ids(0)], [weights], [x]).tolist() == [0] * 4
    x, nowhere = torch.full((3, 40), torch.nan), torch.full((3, 2), -1, dtype=torch.int32)
    assert not forward(layer, x, nowhere, torch.full((3, 2), torch.nan)).any()


def test_choices_are_counted_by_expert():
    experts = GpuExperts(SMALL)
    layer, x, out = experts.layer(absent=[1]), experts.rows(3), torch.empty(3, 40)
    ids = torch.tensor([[0, 3], [3, -1], [9, 1]], dtype=torch.int32)
    counts = layer.forward([x], [ids], [torch.rand(3, 2)], [out])
    assert (counts.tolist(), counts.dtype) == ([1, 0, 0, 2], torch.int64)


@pytest.mark.parametrize("foreign", [-1, -7, 4, 2**31 - 1, -(2**31)])
def test_an_id_that_is_no_expert_is_a_choice_that_is_not_here(foreign):
    experts = GpuExperts(SMALL)
    x, weights = experts.rows(2), torch.tensor([[0.5, torch.nan], [torch.inf, 0.3]])
    ids = torch.tensor([[1, foreign], [foreign, 3]], dtype=torch.int32)
    expected = experts.expected(x, ids, weights)
    torch.testing.assert_close(forward(experts.layer(), x, ids, weights), expected.float())


def test_rows_behind_what_counts_are_not_read():
    """Messages whose number of rows the device alone knows, in memory that holds anything."""
    experts = GpuExperts(SMALL)
    layer, counts = experts.layer(), [3, None, 0, 6]
    sizes = [5, 4, 2, 6]
    x = list(experts.rows(sum(sizes)).split(sizes))
    ids = list(experts.choices(sum(sizes), absent=False)[0].split(sizes))
    weights, outs = ([torch.rand(n, 2) for n in sizes], [torch.empty(n, 40) for n in sizes])
    expected = [experts.expected(*own).float() for own in zip(x, ids, weights, strict=True)]
    for own, weight, out, correct, count in zip(x, weights, outs, expected, counts, strict=True):
        out.fill_(torch.nan)
        if count is not None:
            own[count:], weight[count:], correct[count:] = torch.nan, torch.nan, 0.0
    known = [None if n is None else torch.tensor([n], dtype=torch.int32) for n in counts]
    told = layer.forward(x, ids, weights, outs, known)
    for out, correct in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, correct)
    assert int(told.sum()) == 2 * (3 + 4 + 0 + 6)


def test_a_row_that_is_not_finite_spoils_no_other():
    experts = GpuExperts(SMALL)
    layer, x, (ids, weights) = experts.layer(), experts.rows(6), experts.choices(6, absent=False)
    sound = forward(layer, x, ids, weights)
    x[2, 5], x[4, 0] = torch.nan, torch.inf
    actual = forward(layer, x, ids, weights)
    assert actual[2].isnan().all()
    assert not actual[4].isfinite().all()
    assert torch.equal(actual[[0, 1, 3, 5]], sound[[0, 1, 3, 5]])


def test_slots_are_filled_emptied_and_filled_with_others():
    """What a slot held is forgotten, and its memory serves what is prepared next."""
    experts = GpuExperts(OTHERS["gpt-oss"])
    layer = experts.layer()
    x, (ids, weights) = experts.rows(12), experts.choices(12)
    whole = forward(layer, x, ids, weights)
    taken = layer.take(1)
    memory = taken.memory.data_ptr()
    layer.forget(taken)
    gone = torch.where(ids == 1, -1, ids)
    assert torch.equal(forward(layer, x, ids, weights), forward(layer, x, gone, weights))
    again = experts.prepare(layer, 1)
    assert again.memory.data_ptr() == memory
    layer.put(1, again)
    assert torch.equal(forward(layer, x, ids, weights), whole)
    first, second = layer.take(2), layer.take(3)
    layer.put(2, second)
    layer.put(3, first)
    moved = torch.tensor([0, 1, 3, 2, -1], dtype=torch.int32)[ids.long()]
    torch.testing.assert_close(forward(layer, x, moved, weights), whole)


def test_another_format_is_refused_by_name():
    with pytest.raises(ConfigError, match="'float16' on a GPU; use one of float32, bfloat16"):
        GpuExperts(SMALL, "float16")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("fp8", torch.bfloat16),
        ("int4", torch.bfloat16),
    ],
)
def test_a_rows_bits_do_not_depend_on_its_batch(name, dtype):
    experts = GpuExperts(ExpertsShape(2, 72, 40, 2), name, invariant=True)
    layer, rows = experts.layer(), 90  # more than a tile
    x, (ids, weights) = experts.rows(rows, dtype), experts.choices(rows)
    with rows_alone():
        whole = forward(layer, x, ids, weights)
        for row in (1, 89):
            alone = forward(layer, x[[row]], ids[[row]], weights[[row]])
            assert torch.equal(alone[0], whole[row])
        order = torch.randperm(rows, generator=experts.generator)
        shuffled = forward(layer, x[order], ids[order], weights[order], [1, 40, 0, 49])
    assert torch.equal(shuffled, whole[order])
