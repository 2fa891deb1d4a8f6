"""The C++ experts: what they compute at every instruction set, and whatever they are given."""

import pytest
import torch

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.reference.kernels.experts import inner as reference_inner
from megainfer.config import WEIGHT_DTYPES
from megainfer.errors import ConfigError
from megainfer.models.spec import Activation, ActivationSpec
from tests.support.kernel_experts import (
    Experts,
    levels,
    relative_error,
    run,
    run_split,
)

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

SHAPES = [
    ExpertsShape(5, 37, 29, 2),  # multiples of nothing
    ExpertsShape(3, 1, 1, 1),
    ExpertsShape(4, 64, 96, 3),
    ExpertsShape(7, 301, 130, 4),  # more than one block of int8, the last one short
]
WIDE = {"experts": 5, "hidden": 150, "intermediate": 61, "top_k": 3}
OTHERS = {
    "gpt-oss": ExpertsShape(
        **WIDE, activation=ActivationSpec(limit=0.7, alpha=1.702, up_offset=1.0), bias=True
    ),
    "limit": ExpertsShape(**WIDE, activation=ActivationSpec(limit=0.5)),
    "bias": ExpertsShape(**WIDE, bias=True),
    "gelu": ExpertsShape(**WIDE, activation=ActivationSpec(Activation.GELU)),
    "gelu tanh": ExpertsShape(**WIDE, activation=ActivationSpec(Activation.GELU_TANH)),
    "weight on input": ExpertsShape(**WIDE, weight_on_input=True),
    "weight on input, bias": ExpertsShape(**WIDE, weight_on_input=True, bias=True),
}
# Rounding each weight (and row) once to 8 bits of mantissa; to 1/127 of a block's largest; each
# weight to one of 16 numbers, or to 4 bits of mantissa.
FOUR_BITS = {"mxfp4": 0.3, "int4": 0.2, "int4_128": 0.25}
FP8 = {"fp8": 8e-2, "fp8_channel": 8e-2}
ERRORS = {"float32": 2e-6, "bfloat16": 6e-3, "int8": 3e-2, "int8_32": 3e-2, **FOUR_BITS, **FP8}

every_level = pytest.mark.parametrize("level", levels())
every_dtype = pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)


@every_level
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_get_what_a_loop_in_float64_gives(level, weight_dtype, shape):
    experts = Experts(shape)
    layer = experts.packed(weight_dtype, level)
    for count in (1, 2, 13, 60):
        x, (ids, weights) = experts.rows(count), experts.choices(count, absent=count > 1)
        actual = run(layer, x, ids, weights)
        # One short row can be unlucky where the others average out.
        bound = ERRORS[weight_dtype] * (3 if count < 3 or shape.hidden == 1 else 1)
        assert relative_error(actual, experts.expected(x, ids, weights)) < bound


@every_level
@every_dtype
@pytest.mark.parametrize("name", OTHERS)
def test_other_experts_than_plain_ones(level, weight_dtype, name):
    experts = Experts(OTHERS[name])
    layer = experts.packed(weight_dtype, level)
    x, (ids, weights) = experts.rows(40), experts.choices(40)
    actual, expected = run(layer, x, ids, weights), experts.expected(x, ids, weights)
    assert relative_error(actual, expected) < ERRORS[weight_dtype]
    order = torch.randperm(40)
    shuffled = run_split(layer, x[order], ids[order], weights[order], (13, 0, 27))
    assert torch.equal(shuffled, actual[order])
    plain = Experts(ExpertsShape(**WIDE)).packed(weight_dtype, level)
    others = run(plain, x, ids, weights).double()  # by the same weights, however they are kept
    assert relative_error(actual, others) > 2 * min(ERRORS[weight_dtype], 3e-2)


@every_level
@pytest.mark.parametrize("kind", list(Activation))
def test_activations_over_the_whole_range(level, kind):
    """An expert that is the identity on either side of its activation."""
    shape = ExpertsShape(1, 2, 1, 1, ActivationSpec(kind))
    kernel = ExpertKernel(shape, "float32", 1, level)
    layer = CpuLayerExperts(kernel, 1)
    layer.put(0, layer.prepare(torch.eye(2), torch.tensor([[1.0], [0.0]])))
    gate = torch.linspace(-30, 30, 2001)
    x = torch.stack([gate, torch.ones_like(gate)], dim=-1)
    ids, weights = torch.zeros(2001, 1, dtype=torch.int32), torch.ones(2001, 1)
    actual = run(layer, x, ids, weights)[:, 0]
    wide = gate.double()
    expected = reference_inner(wide, torch.ones_like(wide), shape.activation)
    torch.testing.assert_close(actual.double(), expected, atol=5e-7, rtol=1e-6)


@every_level
def test_narrow_weights_are_not_silently_wide(level):
    """An error smaller than rounding can give would mean that other weights were used."""
    experts = Experts(SHAPES[3])
    x, (ids, weights) = experts.rows(40), experts.choices(40)
    expected = experts.expected(x, ids, weights)
    errors = [
        relative_error(run(experts.packed(dtype, level), x, ids, weights), expected)
        for dtype in ("float32", "bfloat16", "int8_32", "int8", "fp8", "int4", "int4_128", "mxfp4")
    ]
    assert errors[0] < 1e-5 < 1e-3 < errors[1]
    assert errors == sorted(errors)


@every_level
@every_dtype
def test_bfloat16_rows(level, weight_dtype):
    experts = Experts(SHAPES[0])
    x, (ids, weights) = experts.rows(9, torch.bfloat16), experts.choices(9)
    actual = run(experts.packed(weight_dtype, level), x, ids, weights)
    assert actual.dtype == torch.bfloat16
    bound = ERRORS[weight_dtype] + 4e-3  # the answer's own rounding
    assert relative_error(actual, experts.expected(x, ids, weights)) < bound


@every_level
@every_dtype
def test_all_rows_to_one_expert_and_none_to_any(level, weight_dtype):
    experts = Experts(SHAPES[2])
    layer = experts.packed(weight_dtype, level)
    x, (_, weights) = experts.rows(50), experts.choices(50)
    same = torch.full((50, 3), 2, dtype=torch.int32)
    expected = experts.expected(x, same, weights)
    assert relative_error(run(layer, x, same, weights), expected) < ERRORS[weight_dtype]
    nowhere = torch.full((50, 3), -1, dtype=torch.int32)
    assert torch.equal(run(layer, x, nowhere, weights), torch.zeros_like(x))


@every_level
def test_an_id_that_is_no_expert_is_a_choice_that_is_not_here(level):
    experts = Experts(SHAPES[0])
    layer = experts.packed("float32", level)
    x, weights = experts.rows(2), torch.rand(2, 2)
    for foreign in (-1, -7, 5, 2**31 - 1, -(2**31)):
        ids = torch.tensor([[1, foreign], [foreign, 4]], dtype=torch.int32)
        actual = run(layer, x, ids, weights)
        assert relative_error(actual, experts.expected(x, ids, weights)) < 1e-6


def test_no_rows_and_no_messages():
    experts = Experts(SHAPES[0])
    layer = experts.packed("float32", levels()[-1])
    assert layer.forward([], [], [], []).tolist() == [0] * 5
    assert run(layer, experts.rows(0), *experts.choices(0)).shape == (0, 37)
    x, (ids, weights) = experts.rows(3), experts.choices(3)
    assert torch.equal(run_split(layer, x, ids, weights, [0, 3, 0]), run(layer, x, ids, weights))


def test_choices_are_counted_by_expert():
    experts = Experts(SHAPES[0])
    layer = experts.packed("float32", levels()[-1])
    ids = torch.tensor([[0, 3], [3, -1], [9, 3]], dtype=torch.int32)
    x = experts.rows(3)
    counts = layer.forward([x], [ids], [torch.rand(3, 2)], [torch.empty_like(x)])
    assert counts.tolist() == [1, 0, 0, 3, 0]


@every_level
@every_dtype
def test_a_row_that_is_not_finite_spoils_no_other(level, weight_dtype):
    experts = Experts(SHAPES[0])
    layer = experts.packed(weight_dtype, level)
    x, (ids, weights) = experts.rows(6), experts.choices(6, absent=False)
    sound = run(layer, x, ids, weights)
    x[2, 5], x[4, 0] = torch.nan, torch.inf
    actual = run(layer, x, ids, weights)
    assert actual[2].isnan().all()
    assert not actual[4].isfinite().all()
    assert torch.equal(actual[[0, 1, 3, 5]], sound[[0, 1, 3, 5]])


@every_level
@every_dtype
def test_rows_of_zeros_and_of_tiny_and_large_numbers(level, weight_dtype):
    experts = Experts(SHAPES[2])
    layer = experts.packed(weight_dtype, level)
    ids, weights = experts.choices(4, absent=False)
    scale = torch.tensor([0.0, 1e-38, 1e-4, 1e4])[:, None]
    x = experts.rows(4) * scale
    actual, expected = run(layer, x, ids, weights), experts.expected(x, ids, weights)
    assert torch.equal(actual[0], torch.zeros(64))
    assert actual[1].abs().max() < 1e-36
    for row in (2, 3):
        assert relative_error(actual[row], expected[row]) < 2 * ERRORS[weight_dtype]


@every_level
def test_weights_of_zeros(level):
    experts = Experts(SHAPES[2])
    experts.gate_up.zero_()
    x, choices = experts.rows(3), experts.choices(3)
    assert torch.equal(run(experts.packed("int8", level), x, *choices), torch.zeros_like(x))


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(ConfigError, match="'float16'; use one of float32, bfloat16, int8"):
        ExpertKernel(SHAPES[0], "float16")
    with pytest.raises(ConfigError, match=f"'mmx' don't run here; use one of {levels()[0]}"):
        ExpertKernel(SHAPES[0], "float32", level="mmx")


def test_levels_are_those_of_the_machine():
    assert library.levels()[0] == "generic"
    assert len(set(library.levels())) == len(library.levels())


@every_level
@pytest.mark.parametrize(("weight_dtype", "bias"), [("float32", False), ("int4", True)])
def test_slots_are_filled_emptied_and_filled_with_others(level, weight_dtype, bias):
    """What a slot held is forgotten, and its memory serves what is prepared next."""
    experts = Experts(ExpertsShape(4, 24, 20, 2, bias=bias))
    layer = experts.packed(weight_dtype, level)
    x, (ids, weights) = experts.rows(30), experts.choices(30)
    whole = run(layer, x, ids, weights)
    free = layer.kernel.free_memory
    assert not free
    layer.forget(layer.take(1))
    without = run(layer, x, ids, weights)
    gone = torch.where(ids == 1, -1, ids)
    assert torch.equal(without, run(experts.packed(weight_dtype, level), x, gone, weights))
    assert len(free) == 1
    memory = free[0].gate_up.data_ptr()
    layer.put(1, experts.prepared(layer, 1))
    assert not free
    assert torch.equal(run(layer, x, ids, weights), whole)
    # Two that change places: the new ones are there before the old ones are gone.
    prepared = [experts.prepared(layer, expert) for expert in (2, 3)]
    for slot, own in zip((3, 2), prepared, strict=True):
        layer.forget(layer.take(slot))
        layer.put(slot, own)
    assert len(free) == 2
    assert all(own.gate_up.data_ptr() != memory for own in free)
    moved = torch.tensor([0, 1, 3, 2, -1], dtype=torch.int32)[ids.long()]
    torch.testing.assert_close(run(layer, x, moved, weights), whole)


@every_level
def test_ids_that_change_while_they_are_sorted(level):
    """A peer can write into its slot whenever it likes. Here it is the sorting itself that does:
    its counts lie where the ids are, so that whoever reads an id twice reads two."""
    experts = Experts(ExpertsShape(64, 37, 29, 2))
    layer = experts.packed("float32", level)
    x, (ids, weights) = experts.rows(64), experts.choices(64)
    expected = run(layer, x, ids, weights)
    shared = layer.kernel._counts.view(torch.int32).view(64, 2)
    shared.copy_(ids)
    assert torch.equal(run(layer, x, shared, weights), expected)
    assert not torch.equal(shared, ids)
