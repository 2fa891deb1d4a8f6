"""Norms and rotary embedding against their formulas."""

import math

import torch

from megainfer.compute.reference import kernels as kernels
from megainfer.models.spec import RopeSpec

THETA, DIM = 10_000.0, 8


def test_rms_norm_is_the_formula():
    x, weight = torch.randn(5, 3, 16), torch.randn(16)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-3), expected.float())


def test_rms_norm_of_bfloat16_rounds_before_it_scales():
    x, weight = torch.randn(64, 32).bfloat16(), torch.full((32,), 1.7).bfloat16()
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-6), normed.bfloat16() * weight)
    assert not torch.equal(normed.bfloat16() * weight, (normed * weight).bfloat16())


def test_rotation_turns_pairs_by_their_angle():
    table = kernels.rotary_table(RopeSpec(THETA), DIM, 32, torch.float32)
    heads = torch.randn(1, 2, DIM)
    turned = kernels.rotate(heads, table[torch.tensor([7])])
    for i in range(DIM // 2):
        angle = 7 * THETA ** (-2 * i / DIM)
        a, b = heads[0, :, i], heads[0, :, i + DIM // 2]
        low = a * math.cos(angle) - b * math.sin(angle)
        high = b * math.cos(angle) + a * math.sin(angle)
        torch.testing.assert_close(turned[0, :, i], low, atol=1e-5, rtol=0)
        torch.testing.assert_close(turned[0, :, i + DIM // 2], high, atol=1e-5, rtol=0)


def test_scores_depend_on_the_distance_only():
    table = kernels.rotary_table(RopeSpec(THETA), DIM, 64, torch.float32)
    q, k = torch.randn(1, 1, DIM), torch.randn(1, 1, DIM)

    def score(at: int, to: int) -> float:
        turned = kernels.rotate(q, table[[at]]), kernels.rotate(k, table[[to]])
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(score(40, 33), score(17, 10), abs_tol=1e-4)
    assert not math.isclose(score(40, 33), score(40, 32), abs_tol=1e-4)


def test_rotation_of_neighbours_and_of_the_first_channels_only():
    """Interleaved: channels 2i and 2i + 1 turn together; those beyond the table's stay."""
    rope = RopeSpec(THETA, rotated=DIM, interleaved=True)
    table = kernels.rotary_table(rope, DIM, 32, torch.float32)
    heads = torch.randn(1, 2, DIM + 6)
    turned = kernels.rotate(heads, table[torch.tensor([7])], interleaved=True)
    pairs = torch.view_as_complex(heads[0, :, :DIM].unflatten(-1, (-1, 2)).contiguous())
    angles = 7 * THETA ** (-torch.arange(0, DIM, 2) / DIM)
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(DIM // 2), angles)).flatten(1)
    torch.testing.assert_close(turned[0, :, :DIM], expected, atol=1e-5, rtol=0)
    assert torch.equal(turned[..., DIM:], heads[..., DIM:])
