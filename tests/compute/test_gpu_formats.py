"""Formats of experts' weights on a GPU: what they lose, and what they don't."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.formats.expert import ExpertLayout
from megainfer.compute.gpu.formats.registry import FORMATS, format_of
from megainfer.config import ON_CPU_ALONE, WEIGHT_DTYPES
from megainfer.errors import ConfigError
from megainfer.memory import stored_bytes
from tests.support.expert_memory import weights_of
from tests.support.quantised import FORMATS as STORED
from tests.support.quantised import Format, awq, elementwise, gptq, packed

D, F = 200, 72  # multiples of 8, and of nothing that shares a scale
SHAPE = ExpertsShape(1, D, F, 1)
every_format = pytest.mark.parametrize("name", FORMATS)


def kept(name: str, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of these weights in this format; no byte may be anything that wasn't written."""
    layout = ExpertLayout.of(SHAPE, format_of(name))
    return weights_of(layout, layout.store(gate_up, down, None))


def random(*shape: int) -> Tensor:
    """Of many sizes, some of them zeros."""
    weights = torch.randn(shape) * torch.rand(shape) ** 3
    return weights.masked_fill(torch.rand(shape) < 0.1, 0.0)


def spread(blocks: Tensor, rows: int, group: int, shape: torch.Size) -> Tensor:
    """[i, j]: what its block has."""
    return blocks.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(group, 1)[:, : shape[1]]


def largest(weight: Tensor, rows: int, group: int) -> Tensor:
    parts = [part.split(group, 1) for part in weight.split(rows)]
    blocks = torch.stack([torch.stack([b.abs().max() for b in part]) for part in parts])
    return spread(blocks, rows, group, weight.shape)


def bound(name: str, weight: Tensor) -> Tensor:
    """How far off each weight may be."""
    form = FORMATS[name]
    size, each = weight.abs(), largest(weight, form.rows or 1, form.group or weight.shape[1])
    match name:
        case "float32":
            return torch.zeros_like(weight)
        case "bfloat16":
            return size / 2**8
        case "int8":
            return each / 254
        case "fp8" | "fp8_channel":
            return torch.maximum(size / 16, each / 448 / 2**10)
        case "mxfp4":
            # The group's power of two is no more than what makes its largest just more than 3.
            return torch.maximum(size, each / 3) / 4
    return each / 14


@every_format
def test_no_weight_is_further_off_than_its_format_says(name):
    gate_up, down = random(2 * F, D), random(D, F)
    for actual, weight in zip(kept(name, gate_up, down), (gate_up, down), strict=True):
        # Blocks end where up begins.
        halves = weight.chunk(2) if len(weight) == 2 * F else [weight]
        allowed = torch.cat([bound(name, half) for half in halves])
        assert ((actual - weight).abs() <= allowed * 1.00001).all()


@every_format
def test_weights_of_zeros_and_tiny_and_huge_ones(name):
    gate_up, down = torch.zeros(2 * F, D), torch.zeros(D, F)
    assert all(not weight.any() for weight in kept(name, gate_up, down))
    gate_up[:3], down[:3] = 1e-40, 1e30
    gate_up, down = kept(name, gate_up, down)
    assert gate_up.isfinite().all()
    assert (gate_up.abs() < 1e-37).all()
    torch.testing.assert_close(down[:3], torch.full((3, F), 1e30), rtol=0.25, atol=0)


@every_format
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_stay_so(name, damage):
    gate_up, down = random(2 * F, D), random(D, F)
    gate_up[5, 7] = down[9, 11] = damage
    kept_gate_up, kept_down = kept(name, gate_up, down)
    assert not kept_gate_up[5, 7].isfinite()
    assert not kept_down[9, 11].isfinite()


def float8(scale_dtype: torch.dtype, block: tuple[int, int] | str) -> Format:
    return elementwise({}, block, "", scale_dtype=scale_dtype)


ROUND_TRIPS = {
    **{
        f"fp8-{dtype}": ("fp8", float8(getattr(torch, dtype), (128, 128)))
        for dtype in ("float32", "bfloat16", "float8_e8m0fnu")
    },
    "fp8-a-tensor": ("fp8", float8(torch.float32, "tensor")),
    "fp8_channel": ("fp8_channel", float8(torch.float32, "channel")),
    "fp8_channel-bfloat16": ("fp8_channel", float8(torch.bfloat16, "channel")),
    "mxfp4": ("mxfp4", STORED["mxfp4"]),
    "int4-awq": ("int4", awq({}, 32, "")),
    "int4-gptq": ("int4", gptq("", group=64)),
    "int4-gptq-a-channel": ("int4_128", gptq("", group=None)),
    "int4-symmetric": ("int4", packed({}, 32, 4, True, "")),
    "int4_128": ("int4_128", packed({}, 128, 4, False, "")),
}


@pytest.mark.parametrize(("name", "stored"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_what_was_stored_in_a_format_is_kept_bit_for_bit(name, stored):
    def meant(rows: int, columns: int) -> Tensor:
        weight = random(rows, columns)
        return stored.meaning(stored.store(weight), (rows, columns))

    fused = stored.experts_only  # MXFP4's codes are the transposed weight's
    gate, up = (meant(D_OF_32, F_OF_32).T if fused else meant(F_OF_32, D_OF_32) for _ in "gu")
    down = meant(F_OF_32, D_OF_32).T if fused else meant(D_OF_32, F_OF_32)
    layout = ExpertLayout.of(ExpertsShape(1, D_OF_32, F_OF_32, 1), format_of(name))
    actual = weights_of(layout, layout.store(torch.cat([gate, up]), down, None))
    assert torch.equal(actual[0], torch.cat([gate, up]))
    assert torch.equal(actual[1], down)


D_OF_32, F_OF_32 = 288, 96
"""MXFP4 has whole groups only."""


def test_scales_that_float32_rounded_are_found():
    """A scale of 24 bits, of which the largest weight's quotient is a neighbour."""
    generator = torch.Generator().manual_seed(1)
    scales = 1 + torch.rand(2 * F, 1, generator=generator)
    codes = (448 * torch.randn(2 * F, D, generator=generator)).clamp(-448, 448)
    gate_up = codes.to(torch.float8_e4m3fn).float() * scales
    quotients = gate_up.abs().amax(1, keepdim=True) / 448
    assert (quotients != scales).any()
    assert torch.equal(kept("fp8_channel", gate_up, torch.zeros(D, F))[0], gate_up)


def test_formats_are_those_that_the_option_has():
    assert tuple(FORMATS) == tuple(name for name in WEIGHT_DTYPES if name not in ON_CPU_ALONE)


@every_format
def test_the_ledger_counts_what_an_expert_takes(name):
    layout = ExpertLayout.of(ExpertsShape(1, 1024, 512, 1), format_of(name))
    assert stored_bytes(3 * 1024 * 512, name) == pytest.approx(layout.bytes, rel=0.02)


def test_another_format_is_refused_by_name():
    with pytest.raises(ConfigError, match="'nvfp4' on a GPU; use one of float32, bfloat16, int8"):
        format_of("nvfp4")
