"""Choices sorted by expert on the device, against torch's stable sort."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels import tiles
from megainfer.compute.gpu.kernels.messages import Messages
from megainfer.compute.gpu.kernels.tiles import Sorted, most_tiles, sort_choices
from megainfer.device import HOST, HostDevice

D = 8


class Gathered:
    """Messages of these sizes; counts: how many rows of each count, None: all."""

    def __init__(
        self, sizes: list[int], experts: int, top_k: int, counts: list[int | None] | None = None
    ) -> None:
        self.hidden = [torch.randn(rows, D) for rows in sizes]
        self.ids = [torch.randint(-2, experts + 2, (rows, top_k)).int() for rows in sizes]
        self.weights = [torch.rand(rows, top_k) for rows in sizes]
        self.outs = [torch.empty(rows, D) for rows in sizes]
        self.counts = [
            None if count is None else torch.tensor([count], dtype=torch.int32)
            for count in counts or [None] * len(sizes)
        ]
        self.messages = Messages.of(
            HOST, self.hidden, self.ids, self.weights, self.outs, self.counts
        )

    def choices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of all messages in a row: ids, -1 where a row doesn't count; where each choice's row is;
        weights."""
        ids, rows = [], []
        for x, own, count in zip(self.hidden, self.ids, self.counts, strict=True):
            counted = torch.arange(len(own))[:, None] < (len(own) if count is None else count)
            ids.append(own.masked_fill(~counted, -1).flatten())
            at = x.data_ptr() + torch.arange(len(x)) * 4 * D
            rows.append(at.repeat_interleave(own.shape[1]))
        weights = torch.cat([own.flatten() for own in self.weights])
        return torch.cat(ids).long(), torch.cat(rows), weights


def check(found: Sorted, gathered: Gathered, here: Tensor) -> None:
    """here: bool [E], whether a slot holds an expert."""
    ids, rows, weights = gathered.choices()
    known = (ids >= 0) & (ids < len(here))
    known &= here[ids.clamp(0, len(here) - 1)]
    counts = torch.bincount(ids[known], minlength=len(here))
    assert found.counts.dtype == torch.int64
    assert torch.equal(found.counts, counts)
    order = known.nonzero().flatten()
    order = order[ids[order].argsort(stable=True)]
    places = torch.full_like(ids, -1)
    places[order] = torch.arange(len(order))
    assert torch.equal(found.places.long(), places)
    assert torch.equal(found.rows[: len(order)], rows[order])
    assert torch.equal(found.weights[: len(order)], weights[order])
    expected, begin = [], 0
    for expert, count in enumerate(counts.tolist()):
        firsts = range(begin, begin + count, found.tile_rows)
        begin += count
        expected += [[expert, first, begin] for first in firsts]
    assert found.length.tolist() == [len(expected)]
    assert len(found.tiles) >= len(expected)
    assert found.tiles[: len(expected)].tolist() == expected


def sort(gathered: Gathered, here: Tensor, tile_rows: int = 16) -> Sorted:
    return sort_choices(HOST, gathered.messages, here.long() * 4096, tile_rows)


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize(
    ("sizes", "experts", "top_k", "tile_rows"),
    [
        ([7], 5, 2, 16),
        ([1], 1, 1, 16),
        ([40, 3, 0, 19], 3, 3, 16),  # several tiles an expert, a message without rows
        ([0, 5], 130, 1, 32),
        ([33], 2, 8, 128),
        ([0], 4, 2, 16),
    ],
)
def test_choices_are_sorted_by_expert_then_by_row(
    sizes, experts, top_k, tile_rows, block, monkeypatch
):
    monkeypatch.setattr(tiles, "_BLOCK", block)
    gathered, here = Gathered(sizes, experts, top_k), torch.rand(experts) < 0.8
    found = sort(gathered, here, tile_rows)
    if sum(sizes):
        check(found, gathered, here)
    else:
        assert not found.counts.any()


@pytest.mark.parametrize("counts", [[0, 3, None], [5, 9, 1], [-1, 2**31 - 1, 4]])
def test_rows_that_do_not_count_choose_nothing(counts):
    """Counts behind the rows that there may be, and below none, don't lead out of them."""
    gathered, here = Gathered([5, 9, 4], 4, 2, counts), torch.ones(4, dtype=torch.bool)
    check(sort(gathered, here), gathered, here)


def test_all_choices_may_be_of_one_expert_or_of_none():
    gathered, here = Gathered([20], 3, 2), torch.ones(3, dtype=torch.bool)
    for expert in (1, -1):
        gathered.ids[0].fill_(expert)
        check(sort(gathered, here), gathered, here)


class Meddler(HostDevice):
    """A peer that writes into its slot between the two looks at it."""

    def __init__(self, ids: Tensor, later: int) -> None:
        super().__init__()
        self.ids, self.later = ids, later

    def launch(self, work, reads, writes, *, name):
        if name == "_sort_choices":
            self.ids.fill_(self.later)
        super().launch(work, reads, writes, name=name)


@pytest.mark.parametrize("later", [1, -1])
def test_ids_that_change_while_they_are_sorted_lead_nowhere_else(later, monkeypatch):
    monkeypatch.setattr(tiles, "_BLOCK", 16)
    gathered = Gathered([30], 3, 2)
    ids = gathered.ids[0].clone()
    slots = torch.full((3,), 4096)
    found = sort_choices(Meddler(gathered.ids[0], later), gathered.messages, slots, 16)
    before = [int((ids == expert).sum()) for expert in range(3)]
    assert found.counts.tolist() == before
    own = slice(before[0], before[0] + before[1])  # expert 1's
    told = found.places[found.places >= 0]
    expected = range(own.start, own.stop) if later == 1 else []
    assert told.tolist() == list(expected)
    gone = torch.ones(sum(before), dtype=torch.bool)
    gone[told.long()] = False
    assert torch.equal(found.rows[: sum(before)] == 0, gone)


def test_no_more_tiles_than_there_is_room_for():
    for choices in range(40):
        for experts in (1, 2, 7):
            # As many experts as can be have one choice more than whole tiles.
            used = min(experts, choices)
            worst = used + (choices - used) // 4
            assert worst <= most_tiles(choices, experts, 4) <= choices
