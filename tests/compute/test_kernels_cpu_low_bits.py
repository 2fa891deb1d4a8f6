"""FP8 and weights of four bits in the C++ kernels: what is kept of them is what is multiplied."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.selection import Precision
from megainfer.config import FOUR_BITS, EngineConfig
from megainfer.errors import CheckpointError
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.memory import stored_bytes
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import Experts, levels, relative_error, run
from tests.support.node_pair import Pair, load_pair
from tests.support.quantised import (
    FORMATS,
    Format,
    awq,
    compressed,
    e2m1,
    e4m3,
    elementwise,
    gptq,
    packed,
    quantise,
    quantise_fused,
)

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())
every_format = pytest.mark.parametrize("name", [*FOUR_BITS, "fp8"])

GROUPS = {"mxfp4": 32, "int4": 32, "int4_128": 128}
NARROW_ROWS = ("avx512_vnni", "avx512_bf16", "amx")
"""Levels at which rows become int8, so that products of unit rows are rounded once more."""
ROWS = {True: dict.fromkeys(NARROW_ROWS, 2.5e-2), False: dict.fromkeys(NARROW_ROWS[1:], 6e-3)}
"""Bounds of their errors, by whether weights are of four bits: rows in bfloat16 are FP8's."""
WIDE_ROWS = tuple(level for level in levels() if level not in NARROW_ROWS)


def kept(weight: Tensor, name: str, level: str) -> Tensor:
    """What a format keeps of a weight [N, K]: its products with unit rows, exact but for how rows
    are kept."""
    kernel = AttentionKernel(1, level)
    return kernel.linear(kernel.pack(weight, name), torch.eye(weight.shape[1])).T


def assert_kept(actual: Tensor, expected: Tensor, name: str, level: str) -> None:
    if name in FOUR_BITS and level in NARROW_ROWS:
        torch.testing.assert_close(actual, expected, rtol=3e-7, atol=0)
    else:
        assert torch.equal(actual, expected)


def random(*shape: int) -> Tensor:
    """Of many sizes, some of them zeros."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 3
    return weights.masked_fill(torch.rand(shape, generator=generator) < 0.1, 0.0)


# --- what was stored so --------------------------------------------------------------------------

STORED: dict[str, tuple[str, Format]] = {
    "mxfp4": ("mxfp4", FORMATS["mxfp4"]),
    "awq": ("int4", awq({}, 32, "")),
    "awq, a channel": ("int4_128", awq({}, None, "")),
    "gptq, 64": ("int4", gptq("", group=64)),
    "gptq, 128": ("int4_128", gptq("", group=128)),
    "compressed-tensors, symmetric": ("int4", packed({}, 32, 4, True, "")),
    "compressed-tensors, a channel": ("int4_128", packed({}, None, 4, False, "")),
    "fp8": ("fp8", elementwise({}, (128, 128), "")),
    "fp8, a channel": ("fp8_channel", elementwise({}, "channel", "", scale_dtype=torch.bfloat16)),
    "fp8, a tensor": ("fp8", elementwise({}, "tensor", "")),
}
every_stored = pytest.mark.parametrize("stored", STORED)


@cache  # formulas take their time, and levels share them
def meant(stored: str, outputs: int, inputs: int) -> Tensor:
    """By the formula of the format, element by element."""
    form = STORED[stored][1]
    if form.experts_only:  # MXFP4's codes are the transposed weight's
        return form.meaning(form.store(random(inputs, outputs)), (inputs, outputs)).T.contiguous()
    return form.meaning(form.store(random(outputs, inputs)), (outputs, inputs))


@every_level
@every_stored
def test_what_was_stored_is_kept_bit_for_bit(level, stored):
    weight = meant(stored, 40, 160)  # more than a panel of any level; a block, and a short one
    name = STORED[stored][0]
    assert_kept(kept(weight, name, level), weight, name, level)


@every_level
def test_every_code_of_fp8_is_kept(level):
    """Subnormal numbers too; the largest tells the scale of each channel."""
    numbers = torch.tensor([e4m3(code) for code in range(256) if code % 128 != 127])
    weight = torch.cat([numbers.view(2, 127), torch.full((2, 1), 448.0)], dim=1) / 64
    assert torch.equal(kept(weight, "fp8", level), weight)


@every_level
@every_stored
def test_products_are_those_of_what_was_stored(level, stored):
    """Of a whole expert, in float64."""
    shape = ExpertsShape(1, 160, 32, 1)
    experts = Experts(shape)
    experts.gate_up[0] = meant(stored, 64, 160)
    experts.down[0] = meant(stored, 160, 32)
    x, (ids, weights) = experts.rows(25), experts.choices(25, absent=False)
    actual = run(experts.packed(STORED[stored][0], level), x, ids, weights)
    bound = ROWS[STORED[stored][0] in FOUR_BITS].get(level, 2e-6)
    assert relative_error(actual, experts.expected(x, ids, weights)) < bound


# --- what wasn't ---------------------------------------------------------------------------------


@every_level
def test_mxfp4_is_the_nearest_by_the_smallest_exponent(level):
    weight = random(40, 70)
    numbers = torch.tensor([e2m1(code) for code in range(16)])
    expected = torch.empty_like(weight)
    for row in range(len(weight)):
        for first in range(0, 70, 32):
            group = weight[row, first : first + 32]
            power = next(2.0**e for e in range(-40, 9) if group.abs().max() <= 6 * 2.0**e)
            distances = (group[:, None].double() - (numbers * power).double()).abs()
            expected[row, first : first + 32] = (numbers * power)[distances.argmin(-1)]
    assert_kept(kept(weight, "mxfp4", level), expected, "mxfp4", level)


@every_level
def test_fp8_is_the_nearest_by_a_scale_of_the_largest(level):
    weight = random(40, 150)
    numbers = torch.tensor([e4m3(code) for code in range(256) if code % 128 != 127])
    expected = torch.empty_like(weight)
    for row in range(len(weight)):
        for first in range(0, 150, 128):
            group = weight[row, first : first + 128]
            scale = group.abs().max() / 448
            distances = (group[:, None] / scale - numbers).abs()
            expected[row, first : first + 128] = numbers[distances.argmin(-1)] * scale
    actual = kept(weight, "fp8", level)
    assert (
        actual != expected
    ).sum() <= 3  # halfway between two numbers, but for float32's rounding
    torch.testing.assert_close(actual, expected, rtol=0.13, atol=1e-4)


@every_level
@pytest.mark.parametrize("name", ["int4", "int4_128"])
def test_int4_has_the_scale_of_the_least_squared_error(level, name):
    """Over a fine search in float64 no scale of a group is much better; many are worse."""
    generator = torch.Generator().manual_seed(6)
    group = GROUPS[name]
    weight = torch.randn(24, 2 * group, generator=generator)
    groups = weight.view(-1, group).double()
    largest = groups.abs().amax(-1, keepdim=True)
    errors = []
    for step in torch.linspace(-14, 14, 561):
        scale = largest / (step if step else 14)
        codes = (groups / scale).round().clamp(-8, 7)
        errors.append((groups - codes * scale).square().sum(-1))
    best = torch.stack(errors).amin(0).sum()
    plain = (groups - (groups / largest * 7).round() * largest / 7).square().sum()
    own = (groups - kept(weight, name, level).reshape(-1, group).double()).square().sum()
    assert own < 1.02 * best
    assert best < 0.95 * plain


@every_level
@every_format
def test_weights_of_zeros_and_tiny_and_huge_ones(level, name):
    weight = torch.zeros(70, 150)
    assert not kept(weight, name, level).any()
    weight[:3], weight[3:5] = 1e-40, 1e30
    actual = kept(weight, name, level)
    assert (actual[:3].abs() < 1e-37).all()
    torch.testing.assert_close(actual[3:5], weight[3:5], rtol=0.25, atol=0)
    assert not actual[5:].any()


@every_level
@every_format
@pytest.mark.parametrize("damage", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(level, name, damage):
    layer = CpuLayerExperts(ExpertKernel(ExpertsShape(2, 150, 40, 1), name, 1, level), 2)
    gate_up, down = random(80, 150), random(150, 40)
    prepared = layer.prepare(gate_up, down)
    layer.forget(prepared)
    for matrix in (gate_up, down):
        sound = matrix[-1, -1].clone()
        matrix[-1, -1] = damage
        with pytest.raises(CheckpointError, match=f"NaN or infinity.*{name} can't keep"):
            layer.prepare(gate_up, down)
        with pytest.raises(CheckpointError, match=f"weights hold NaN.*{name} can't keep"):
            AttentionKernel(1, level).pack(matrix, name)
        matrix[-1, -1] = sound


@every_format
def test_the_ledger_counts_what_an_expert_takes(name):
    kernel = ExpertKernel(ExpertsShape(1, 1024, 512, 1), name)
    counted = stored_bytes(3 * 1024 * 512, name, on_gpu=False)
    assert counted == kernel.gate_up_bytes + kernel.down_bytes


# --- a whole model -------------------------------------------------------------------------------


CHANNELS = compressed("pack-quantized", num_bits=4, type="int", strategy="channel")
MODELS = {
    "mxfp4": FORMATS["mxfp4"],
    "awq": awq({**FORMATS["awq"].config, "group_size": 32}, 32, "awq"),
    "gptq": gptq("gptq", group=64),
    "compressed-tensors": packed(CHANNELS, None, 4, True, ""),
    "fp8": FORMATS["fp8"],
    "fp8_channel": FORMATS["fp8_channel"],
}
KEPT = dict(zip(MODELS, ("mxfp4", "int4", "int4", "int4_128", "fp8", "fp8_channel"), strict=True))


SIZES = {
    "hidden_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_experts": 4,
}


def folders(name: str, tmp_path) -> tuple:
    """A tiny model in this format, and the plain one that it means."""
    if name == "mxfp4":
        settings = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
        plain = write_checkpoint("gpt_oss", "alternating", tmp_path / "plain", **settings)
        quantise_fused(plain, tmp_path / "quantised", tmp_path / "meant", MODELS[name])
    else:
        plain = write_checkpoint("qwen3_moe", "gqa", tmp_path / "plain", **SIZES)
        quantise(plain, tmp_path / "quantised", tmp_path / "meant", MODELS[name])
    return tmp_path / "quantised", tmp_path / "meant"


def all_logits(pair: Pair) -> Tensor:
    prompts: Sequence[list[int]] = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    return torch.cat(pair.all_logits(prompts))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_served_as_it_is_stored(tmp_path, monkeypatch, name):
    """`auto` keeps what is on disk, and the answers are the reference's on the weights it means:
    closely where rows stay floats, else as closely as rows of int8 allow."""
    quantised, plain = folders(name, tmp_path)
    plan = make_plan(EngineConfig(model=str(tmp_path)), quantised, read_machine())
    assert plan.expert_dtype == KEPT[name]
    expected = all_logits(load_pair(plain, 2, kernels="reference")).double()
    precision = Precision(experts=plan.expert_dtype)
    assert relative_error(all_logits(load_pair(quantised, 2, precision, "cpu")), expected) < 4e-2
    monkeypatch.setattr(library, "levels", lambda: WIDE_ROWS)
    actual = all_logits(load_pair(quantised, 2, precision, "cpu"))
    assert relative_error(actual, expected) < 1e-5
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))


def test_auto_expands_what_is_not_all_stored_so(tmp_path):
    form = MODELS["awq"]
    excepted = {**form.config, "modules_to_not_convert": ["layers.1.mlp"]}
    plain = write_checkpoint("qwen3_moe", "gqa", tmp_path / "plain", **SIZES)
    quantise(plain, tmp_path / "quantised", tmp_path / "meant", replace(form, config=excepted))
    plan = make_plan(EngineConfig(model=str(tmp_path)), tmp_path / "quantised", read_machine())
    assert plan.expert_dtype == plan.dtype
    wish = EngineConfig(model=str(tmp_path), expert_dtype="int8")
    assert make_plan(wish, tmp_path / "quantised", read_machine()).expert_dtype == "int8"


@pytest.mark.parametrize(("name", "ranks"), [("awq", 2), ("mxfp4", 2), ("fp8_channel", 4)])
def test_ranks_keep_what_is_stored_where_no_group_has_two_scales(tmp_path, name, ranks):
    """AWQ's parts are a group of 32 inputs here, MXFP4's half of one; FP8 has a scale a channel."""
    quantised, _ = folders(name, tmp_path)
    wish = EngineConfig(model=str(tmp_path), ffn_tp=ranks)
    plan = make_plan(wish, quantised, read_machine())
    assert plan.expert_dtype == (plan.dtype if name == "mxfp4" else KEPT[name])
