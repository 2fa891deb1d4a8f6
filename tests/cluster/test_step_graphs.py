"""Whole decode steps that a device has recorded, on one that works late and repeats its work to the
letter: what is computed without, and in an order with all else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.colocated.graphs import LAYERS, GraphedSteps
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.errors import ConfigError
from megainfer.instruments.stage_clock import StageClock
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.graph_steps import BUCKETS, FAMILIES, STEPS, FullDevice
from tests.support.happens_before import Race
from tests.support.node_pair import FLOAT32, blocks_of, load_pair, open_pair

TOKEN_STEPS = 9  # of STEPS, the others being prompts


class Graphed:
    """A colocated model whose steps were recorded; sequence 7, who has the last block, is
    unused."""

    def __init__(self, folder: Path, device: FakeDevice, most_bytes: int = 2000) -> None:
        self.device, self.told = device, list[tuple[int, int]]()
        self.clock = StageClock()
        with TorchWork(device):
            pair = open_pair(folder, 1, FakeBackend(device))
            (self.experts,), self.kv = pair.experts, pair.kv
            self.model = GraphedSteps(
                *(ColocatedModel(pair.attention, self.experts, pair.kv, self.clock), pair.kv),
                *(BUCKETS, most_bytes, lambda done, total: self.told.append((done, total))),
            )

    def step(self, chunks: list[ChunkInput]) -> Tensor:
        with TorchWork(self.device):
            batch = build_batch(chunks, self.device)
            x = self.model.embed(batch)
            assert self.model.advance(x, 0, batch, self.kv, self.clock.of(0)) is None
            return self.device.read_back(self.model.logits(x, batch.sample_rows)).take()


def check_equal(graphed: Graphed, folder: Path) -> None:
    direct = load_pair(folder, 1, FLOAT32, "reference")
    for steps in STEPS:
        for chunks in steps:
            torch.testing.assert_close(
                graphed.step(chunks), direct.step(chunks), atol=1e-4, rtol=1e-3
            )
    with TorchWork(graphed.device):
        counted = graphed.experts.counters()["expert_tokens"]
    assert counted == direct.experts[0].counters()["expert_tokens"], "padding went to an expert"


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_recorded_steps_give_what_is_given_without(tmp_path, family):
    folder = write_checkpoint(*family, tmp_path)
    graphed = Graphed(folder, FakeDevice())
    assert graphed.told == [(n + 1, len(BUCKETS)) for n in range(len(BUCKETS))]
    check_equal(graphed, folder)
    assert graphed.model.counters() == {
        "graphs": len(BUCKETS),
        "graph_bytes": 0,  # of a device that counts none
        "graph_replays": TOKEN_STEPS,
        "eager_stages": 2,  # prompts
    }
    assert graphed.clock.counters()[f"{LAYERS}_count"] == TOKEN_STEPS


def test_what_has_no_room_is_computed_as_ever(tmp_path):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    graphed = Graphed(folder, FullDevice())
    check_equal(graphed, folder)
    counters = graphed.model.counters()
    assert (counters["graphs"], counters["graph_replays"]) == (1, TOKEN_STEPS), "the largest"
    none = Graphed(folder, FullDevice(), most_bytes=0)
    check_equal(none, folder)
    assert none.model.counters()["eager_stages"] == TOKEN_STEPS + 2
    with pytest.raises(ConfigError, match="recorded can't be computed with other weights"):
        none.model.renewed(None, None)  # type: ignore[arg-type]  # refused unseen


def test_a_step_that_nobody_waited_for_is_found(tmp_path):
    """The proof that a replay's work is checked: its logits, read in a stream of its own."""
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    graphed = Graphed(folder, FakeDevice())
    with TorchWork(graphed.device):
        batch = build_batch([ChunkInput([5], 0, blocks_of(0), True, 0)], graphed.device)
        x = graphed.model.embed(batch)
        graphed.model.advance(x, 0, batch, graphed.kv, graphed.clock.of(0))
        with graphed.device.on(graphed.device.stream()), pytest.raises(Race, match="stream 1"):
            graphed.model.logits(x, batch.sample_rows)
