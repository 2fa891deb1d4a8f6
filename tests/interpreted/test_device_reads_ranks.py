"""What ranks compute on devices without values, and tell each other: nobody asks for any."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.attention_node.ranks import leading as half
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.half import RankLayer
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.other_ranks import ExpertRanks, Rank
from megainfer.launch.ranks.seats import RankSeats
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.registry import load_spec
from megainfer.models.spec import MoESpec
from megainfer.ranks import group
from megainfer.ranks.layout import HalfLayout, RowsLayout
from megainfer.ranks.orders import FollowedOrders
from megainfer.topology import Shard, contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import CLOCK, blocks_of
from tests.support.valueless_device import (
    NAME,
    ValuelessDevice,
    refuse_copies,
    valueless_device,
)

RANKS = 2
ROWS = 24


class NoCollectives:
    """`Collectives` of a device that does nothing. sent: how often, and which way."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def broadcast(self, payload: Tensor) -> None:
        assert payload.device.type == NAME
        assert payload.is_contiguous()
        self.sent.append("broadcast")

    def gather(self, own: Tensor, parts: Sequence[Tensor] = ()) -> None:
        assert {part.device.type for part in (own, *parts)} == {NAME}
        assert len(parts) == RANKS
        self.sent.append("gather")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[ValuelessDevice]:
    with valueless_device() as device:
        monkeypatch.setattr(torch.Tensor, "cpu", refuse_copies)
        yield device


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> NoCollectives:
    made = NoCollectives()
    monkeypatch.setattr(group, "_meet", lambda *_, **__: made)
    return made


@pytest.fixture
def obeyed() -> Iterator[Any]:
    """Seats whose other rank says at once that it has done what it was told."""
    ended, threads = Event(), list[Thread]()

    def make(layout: RowsLayout | HalfLayout) -> RankSeats[Any]:
        seats = RankSeats[Any](layout)
        shared = seats.leading.shared

        def obey() -> None:
            orders = FollowedOrders(shared.memory, RANKS, 1, 0.0)
            orders.done()
            while not ended.is_set():
                if orders.wait(0.05) is not None:
                    orders.done()

        threads.append(Thread(target=obey, daemon=True))
        threads[-1].start()
        return seats

    yield make
    ended.set()
    for thread in threads:
        thread.join(10)


def half_of(folder: Path, device: ValuelessDevice, rank: half.Rank) -> AttentionModel:
    spec, backend = load_spec(folder), GpuBackend(torch.float32, torch.float32, device)
    placement = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
    with WeightReader(folder, device=device) as reader:
        return AttentionModel(spec, reader, placement, backend, rank=rank)


def step(device: ValuelessDevice) -> StepBatch:
    chunks = [
        ChunkInput([3], 7, blocks_of(0), True, 0),
        ChunkInput(list(range(20)), 0, blocks_of(1), True, 1),
    ]
    return build_batch(chunks, device)


@pytest.mark.parametrize(
    "family", [("qwen2_moe", "dense_between"), ("qwen3_next", "grouped")], ids="-".join
)
def test_a_half_of_ranks_reads_nothing(tmp_path, device, collectives, obeyed, family) -> None:
    folder = write_checkpoint(*family, tmp_path)
    spec = load_spec(folder)
    layout = HalfLayout(RANKS, ROWS, spec.hidden_size, 4, spec.vocab_size // RANKS, 8, 8)
    others = half.HalfRanks(obeyed(layout).leading, 0, spec, 0.0, device)
    leads = half_of(folder, device, half.Rank(Shard(0, RANKS), others))
    follows = half_of(folder, device, half.Rank(Shard(1, RANKS)))
    others.await_loaded()
    device.read_backs.clear()
    with device.mode:
        batch, kv = step(device), leads.new_cache(128, 8)
        x, layer = leads.embed(batch), 0
        while (point := leads.advance(x, layer, batch, kv, CLOCK)) is not None:
            leads.shared(point.layer, point.hidden)
            layer = point.layer + 1
        assert leads.logits(x, batch.sample_rows).shape == (2, spec.vocab_size)
        follow(follows, batch)
    others.check()
    assert device.read_backs == []
    rounds = (
        2
        + len(spec.layers)
        + sum(1 for each in spec.layers if not isinstance(each.ffn, MoESpec) or each.ffn.shared)
    )
    assert collectives.sent == ["broadcast", "gather"] * rounds


def follow(model: AttentionModel, batch: StepBatch) -> None:
    """All that a rank that follows may be told of a step."""
    x, kv = model.half.embed(batch.token_ids), model.new_cache(128, 8)
    for number, (layer, spec) in enumerate(zip(model.half.layers, model.spec.layers, strict=True)):
        assert isinstance(layer, RankLayer)
        assert layer.attended(x, batch, kv.layer(number)).shape == x.shape
        part = layer.shared(x) if isinstance(spec.ffn, MoESpec) else layer.fed_forward(x)
        assert part is None or part.shape == x.shape


def test_experts_of_ranks_read_nothing(tmp_path, device, collectives, obeyed) -> None:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path, num_hidden_layers=1)
    spec, backend = load_spec(folder), GpuBackend(torch.float32, torch.float32, device)
    layout = RowsLayout(RANKS, ROWS, spec.hidden_size, spec.top_k, "float32")
    others = ExpertRanks(obeyed(layout).leading, 0, 0.0, device)
    placement = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
    with WeightReader(folder, device=device) as reader:
        rank = Rank(Shard(0, RANKS), others)
        model = ExpertModel(spec, reader, placement, 0, backend, rank)
    others.await_loaded()
    device.read_backs.clear()
    with device.mode:
        hidden = device.empty((5, spec.hidden_size), torch.float32)
        ids, count = device.empty((5, spec.top_k), torch.int32), device.empty((1,), torch.int32)
        messages = [Dispatch(i, 0, 0, 0, hidden, ids, ids.float(), count) for i in range(2)]
        model.forward(spec.first_moe_layer, messages, [torch.empty_like(hidden) for _ in messages])
    assert device.read_backs == []
    assert collectives.sent == [*["broadcast"] * 3, "gather"]
