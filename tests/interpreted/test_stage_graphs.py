"""Stages of an expert node that were recorded with Triton's kernels: bit for bit what is computed
without, whatever arrives, wherever it lies, and whichever experts are there."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.fixed_batch import GpuFixedBatch
from megainfer.device import HostDevice
from megainfer.errors import ConfigError
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.stage_graphs import StageBounds
from megainfer.m2n.mailbox import Dispatch
from megainfer.topology import WAYS, Placement, Table, placed
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import open_pair
from tests.support.recording_device import FullDevice, RecordingDevice

BOUNDS = StageBounds(messages=3, rows=20, most_bytes=3000)
Sizes = Sequence[tuple[int, int | None]]
"""Of messages: rows, and how many of them count where no host knows that."""
BATCHES: list[Sizes] = [
    [(1, None)],
    [(8, None)],  # a bucket, filled
    [(3, 1), (5, 0), (2, 2)],
    [(20, 13)],
    [(6, None), (9, 4)],
    [(2, 1)],  # after larger ones
]
TOO_LARGE: Sizes = [(11, None), (10, None)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    size = {"num_hidden_layers": 2, "num_experts": 5, "num_experts_per_tok": 2}
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("experts"), **size)


def node_of(folder: Path, device: HostDevice, nodes: int = 1, invariant: bool = False) -> Any:
    backend = GpuBackend(torch.float32, torch.float32, device, invariant=invariant)
    return open_pair(folder, nodes, backend).experts[0]


def recorded(folder: Path, device: RecordingDevice, nodes: int = 1) -> ExpertModel:
    model: ExpertModel = node_of(folder, device, nodes)
    model.record(BOUNDS, lambda done, total: None)
    return model


def batch_of(model: ExpertModel, layer: int, sizes: Sizes, seed: int) -> list[Dispatch]:
    generator = torch.Generator().manual_seed(seed)
    experts, top_k = model.spec.num_experts, model.spec.top_k
    return [
        Dispatch(
            source,
            0,
            layer,
            0,
            torch.randn(rows, model.spec.hidden_size, generator=generator),
            torch.randint(-1, experts, (rows, top_k), generator=generator, dtype=torch.int32),
            torch.rand(rows, top_k, generator=generator),
            None if count is None else torch.tensor([count], dtype=torch.int32),
        )
        for source, (rows, count) in enumerate(sizes)
    ]


def answers(model: ExpertModel, layer: int, batch: Sequence[Dispatch]) -> list[Tensor]:
    """Of the rows that count; the memory around them stays as it was."""
    memory = [torch.full((len(own.hidden) + 2, own.hidden.shape[1]), 7.0) for own in batch]
    model.forward(layer, batch, [own[1:-1] for own in memory])
    assert all((own[[0, -1]] == 7).all() for own in memory)
    return [
        own[1:-1] if sent.count is None else own[1:-1][: int(sent.count)]
        for own, sent in zip(memory, batch, strict=True)
    ]


def check_equal(ours: ExpertModel, theirs: ExpertModel, batches: Sequence[Sizes]) -> None:
    for seed, sizes in enumerate(batches):
        for layer in ours.spec.moe_layers:
            batch = batch_of(ours, layer, sizes, seed)
            found, expected = (answers(model, layer, batch) for model in (ours, theirs))
            assert all(map(torch.equal, found, expected)), (sizes, layer)
    told, expected_told = ours.counters(), theirs.counters()
    for name in ("expert_tokens", "expert_reads", "experts_held"):
        assert told[name] == expected_told[name]


def test_any_batch_gets_what_it_gets_without(folder):
    device = RecordingDevice()
    model = recorded(folder, device)
    check_equal(model, node_of(folder, HostDevice()), [*BATCHES, TOO_LARGE])
    layers = len(model.spec.moe_layers)
    counters = model.counters()
    assert counters["graphs"] == layers * len(BOUNDS.buckets)
    assert counters["graph_replays"] == len(BATCHES) * layers
    assert counters["eager_stages"] == layers
    assert len(device.told) == len(BATCHES) * layers


def test_the_device_is_told_what_a_replay_reads_and_writes(folder):
    device = RecordingDevice()
    model = recorded(folder, device)
    layer = model.spec.first_moe_layer
    batch = batch_of(model, layer, BATCHES[2], 0)
    outs = [torch.empty_like(own.hidden) for own in batch]
    model.forward(layer, batch, outs)
    ((reads, writes),) = device.told
    used = {id(tensor) for own in batch for tensor in own[4:] if tensor is not None}
    assert used < {id(tensor) for tensor in reads}
    assert [id(tensor) for tensor in writes] == [id(tensor) for tensor in outs]
    assert sum(tensor.dtype == torch.uint8 for tensor in reads) == model.spec.num_experts


def moved(model: ExpertModel, slots: Sequence[int]) -> Placement:
    """One node's, with these experts in its slots, in every layer."""
    table = Table((tuple(slots),), ((WAYS,) * len(slots),))
    return placed(model.spec.num_experts, dict.fromkeys(model.spec.moe_layers, table))


def test_experts_move_under_what_was_recorded(folder):
    ours, theirs = recorded(folder, RecordingDevice()), node_of(folder, HostDevice())
    check_equal(ours, theirs, BATCHES[:2])
    order = [3, 0, 4, 1, 2]
    for model in (ours, theirs):
        model.enter(moved(model, order))
    check_equal(ours, theirs, BATCHES[2:])


def test_what_has_no_room_is_computed_as_ever(folder):
    ours, theirs = recorded(folder, FullDevice()), node_of(folder, HostDevice())
    check_equal(ours, theirs, BATCHES)
    counters = ours.counters()
    assert counters["graphs"] == 1, "of the first layer's largest batches"
    assert counters["graph_bytes"] > 0
    assert counters["graph_replays"] == counters["eager_stages"] == len(BATCHES)


def test_other_weights_are_refused(folder):
    model = recorded(folder, RecordingDevice())
    with pytest.raises(ConfigError, match="recorded can't be computed with other weights"):
        model.renewed(None, None)  # type: ignore[arg-type]  # refused before a look


def keeps(batch: GpuFixedBatch, *messages: object) -> None:
    """`take` of nothing: what was before stays."""


def counts_all(batch: GpuFixedBatch, first: int) -> list[int]:
    """Rows that there are not, as if they were."""
    return [*[batch._nobodys.data_ptr()] * 4, first, batch.rows - first, 0]


@pytest.mark.parametrize(("name", "wrong"), [("take", keeps), ("_nobodys_line", counts_all)])
def test_what_replays_could_take_for_their_own_is_found(folder, monkeypatch, name, wrong):
    """The proof that these tests can fail."""
    model = recorded(folder, RecordingDevice())
    monkeypatch.setattr(GpuFixedBatch, name, wrong)
    with pytest.raises((AssertionError, IndexError)):
        check_equal(model, node_of(folder, HostDevice()), BATCHES)


def test_bounds_of_buckets():
    assert StageBounds(1, 3, 0).buckets == (3,)
    assert all(b == 2 * a for a, b in pairwise(StageBounds(1, 64, 0).buckets))
