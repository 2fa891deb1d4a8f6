"""Edits of logits, interpreted, bit for bit the reference's."""

from array import array
from dataclasses import replace

import numpy as np
import pytest
import torch

from megainfer.compute.bitmask import mask_of
from megainfer.compute.edits import RowEdits
from megainfer.compute.gpu.kernels.sampling import edits as kernel
from megainfer.compute.gpu.tokens import GpuTokens
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST

TOKENS = GpuTokens(HOST)
GENERATOR = np.random.default_rng(11)


def edits_of(row: int, size: int, held: int, added: int, masked: bool) -> RowEdits:
    """Random ones; a token may be forbidden, added to and held at once."""
    tokens = GENERATOR.permutation(size)[:held].tolist()
    added = min(added, size)
    numbers = GENERATOR.standard_normal(added).astype(np.float32).tolist()
    places = GENERATOR.permutation(size)[:added].tolist()
    forbidden = dict.fromkeys(places[::3], -torch.inf)
    return RowEdits(
        row=row,
        allowed=mask_of(GENERATOR.permutation(size)[: 1 + size // 2], size) if masked else None,
        added=dict(zip(places, numbers, strict=True)) | forbidden,
        held=array("q", tokens),
        generated=array("f", GENERATOR.integers(0, 4, len(tokens)).tolist()),
        repetition=float(GENERATOR.choice([1.0, 1.3, 0.6])),
        frequency=float(GENERATOR.choice([0.0, 0.3, -2.0])),
        presence=float(GENERATOR.choice([0.0, 0.7, -1.3])),
    )


@pytest.mark.parametrize("tile", [kernel.TILE, 128])
@pytest.mark.parametrize("size", [1, 31, 64, 257])
def test_edits_are_the_references(size, tile, monkeypatch):
    monkeypatch.setattr(kernel, "TILE", tile)
    rows = [
        edits_of(0, size, held=200, added=0, masked=False),
        edits_of(2, size, held=0, added=100, masked=False),
        edits_of(3, size, held=0, added=0, masked=True),
        edits_of(6, size, held=300, added=300, masked=True),
    ]
    logits = torch.randn(8, size) * 3
    expected = logits.clone()
    reference.edit(expected, rows)
    edited = logits.clone()
    TOKENS.edit(edited, rows)
    assert torch.equal(edited, expected)
    assert torch.equal(edited[[1, 4, 5, 7]], logits[[1, 4, 5, 7]])
    alone = logits[6:7].clone()
    TOKENS.edit(alone, [replace(rows[3], row=0)])
    assert torch.equal(alone[0], edited[6])


def test_what_was_given_is_copied():
    """A history grows while a device may still have to read it."""
    edits = edits_of(0, 20, held=5, added=0, masked=False)
    words = kernel.packed([edits], 20)
    before = words.copy()
    edits.held.extend([19] * 1000)
    edits.held[0], edits.generated[0] = 7, 9.0
    assert np.array_equal(words, before)


def test_nothing_to_edit():
    logits = torch.randn(2, 5)
    TOKENS.edit(logits, [])
    bare = RowEdits(1, None, {}, array("q"), array("f"), 2.0, 1.0, 1.0)
    edited = logits.clone()
    TOKENS.edit(edited, [bare])
    assert torch.equal(edited, logits)


def test_a_mask_of_another_vocabulary_is_found_out():
    edits = edits_of(0, 64, held=0, added=0, masked=True)
    with pytest.raises(AssertionError, match="2 words for 65 tokens"):
        TOKENS.edit(torch.zeros(1, 65), [edits])
