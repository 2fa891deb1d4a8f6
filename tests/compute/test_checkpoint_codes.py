"""Every code means what its format says."""

import pytest
import torch

from megainfer.checkpoint.codes import as_scales, e2m1, e4m3, nibbles
from tests.support.quantised import e2m1 as e2m1_by_formula
from tests.support.quantised import e4m3 as e4m3_by_formula

ALL = torch.arange(256).to(torch.uint8)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Signs of zeros and NaNs included."""
    nans = torch.equal(ours.isnan(), theirs.isnan())
    signs = torch.equal(ours.signbit(), theirs.signbit()) or bool(theirs.isnan().any())
    return nans and signs and torch.equal(ours.nan_to_num(0), theirs.nan_to_num(0))


def test_e4m3():
    values = e4m3(ALL.view(torch.float8_e4m3fn))
    assert same(values, torch.tensor([e4m3_by_formula(code) for code in range(256)]))
    assert same(values, ALL.view(torch.float8_e4m3fn).to(torch.float32))
    assert len(e4m3(ALL[:0].view(torch.float8_e4m3fn))) == 0


def test_e2m1():
    values = e2m1(ALL[:16])
    assert same(values, torch.tensor([e2m1_by_formula(code) for code in range(16)]))
    assert values.tolist()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_nibbles_are_in_the_order_of_bits():
    assert nibbles(ALL).tolist() == [half for code in range(256) for half in (code & 15, code >> 4)]
    word = torch.tensor([0x76543210, -1], dtype=torch.int32)
    assert nibbles(word).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, *[15] * 8]


@pytest.mark.parametrize("view", [torch.uint8, torch.float8_e8m0fnu])
def test_exponents(view):
    scales = as_scales(ALL.view(view))
    assert scales[:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert scales[255].isnan()
