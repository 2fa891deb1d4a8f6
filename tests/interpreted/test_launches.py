"""How much a device is given for a layer of a decode step, and that the page says so."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.graphs import Bucket, GraphedModel
from megainfer.attention_node.model import MoEPoint, StepModel
from megainfer.colocated.graphs import GraphedSteps
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.kernels.routing.packing import KernelPacking
from megainfer.expert_node.stage_graphs import StageBounds
from megainfer.instruments.stage_clock import StageClock
from megainfer.m2n.mailbox import Dispatch
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.counting_device import CountingDevice
from tests.support.node_pair import CLOCK, Pair, blocks_of, open_pair

PAGE = Path(__file__).parents[2] / "docs" / "kernels-gpu.md"
LAYERS, CONTEXT, UNBOUNDED = 2, 40, 1 << 40
FAMILIES = {"routed": ("qwen3_moe", "gqa"), "shared": ("qwen2_moe", "gqa")}
BUCKETS = (Bucket(2, CONTEXT),)


class Counted:
    """Models of as many nodes as there may be, on one device that counts."""

    def __init__(self, family: tuple[str, str], folder: Path) -> None:
        self.device = CountingDevice()
        written = write_checkpoint(*family, folder, num_hidden_layers=LAYERS)
        backend = GpuBackend(torch.bfloat16, torch.bfloat16, self.device)
        self.pair: Pair = open_pair(written, 1, backend)
        self.spec = self.pair.attention.spec
        assert len(self.spec.moe_layers) == LAYERS

    def step(self, sequences: Sequence[int]) -> tuple[Tensor, StepBatch]:
        chunks = [ChunkInput([5], CONTEXT - 1, blocks_of(n), True, n) for n in sequences]
        batch = build_batch(chunks, self.device)
        return self.pair.attention.embed(batch), batch

    def graphed(self) -> GraphedModel:
        placement = contiguous_placement(self.spec.num_experts, 1, self.spec.moe_layers)
        return GraphedModel(self.pair.attention, self.pair.kv, BUCKETS, UNBOUNDED, placement)

    def attention(self, model: StepModel, micro_batches: int) -> list[str]:
        """Of a layer of one micro-batch, its messages included, when the others had their turn."""
        steps = [self.step([2 * n, 2 * n + 1]) for n in range(micro_batches)]
        for x, batch in steps:
            self._stage(model, x, batch, 0)
        for x, batch in steps[:-1]:
            self._stage(model, x, batch, 1)
        x, batch = steps[-1]
        with self.device.counted() as given:
            self._stage(model, x, batch, 1)
        return [*given]

    def _stage(self, model: StepModel, x: Tensor, batch: StepBatch, layer: int) -> None:
        point = model.advance(x, layer, batch, self.pair.kv, CLOCK)
        assert point is not None
        packing, size = KernelPacking(), len(x)
        ids, weights = point.parts[0].local_ids, point.parts[0].weights
        payload = (torch.empty_like(x), ids, weights, torch.empty(1, dtype=torch.int32))
        packing.pack(self.device, point.hidden, point.parts, [payload])
        shared = model.shared(point.layer, point.hidden)
        if shared is not None:
            x += shared
        packing.add(self.device, point.parts, [torch.empty(size, x.shape[1], dtype=x.dtype)], x)

    def experts(self, recorded: bool) -> list[str]:
        """Of a batch of two messages."""
        (model,) = self.pair.experts
        if recorded:
            model.record(StageBounds(2, 8, UNBOUNDED), lambda done, total: None)
        x, batch = self.step([0, 1])
        point = self.pair.attention.advance(x, 0, batch, self.pair.kv, CLOCK)
        assert point is not None
        messages = [self._message(point, source) for source in range(2)]
        outs = [torch.empty_like(x) for _ in messages]
        model.forward(0, messages, outs)
        with self.device.counted() as given:  # what the one before had served is counted, too
            model.forward(0, messages, outs)
        return [*given]

    def _message(self, point: MoEPoint, source: int) -> Dispatch:
        part = point.parts[0]
        return Dispatch(source, 0, 0, 0, point.hidden, part.local_ids, part.weights, part.count)

    def colocated(self, recorded: bool) -> list[str]:
        """Of a whole step from its embedding to its last layer."""
        alone = ColocatedModel(
            self.pair.attention, self.pair.experts[0], self.pair.kv, StageClock()
        )
        model: StepModel = alone
        if recorded:
            model = GraphedSteps(alone, self.pair.kv, BUCKETS, UNBOUNDED)
        for _ in range(2):
            x, batch = self.step([0, 1])
            with self.device.counted() as given:
                model.advance(x, 0, batch, self.pair.kv, CLOCK)
        return [*given]


def on_page(row: str) -> dict[str, int]:
    """What the page's table has in this row."""
    found = re.search(rf"^\| {row} \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert found, f"the page has no row {row!r}"
    cells = [int(cell) for cell in found[1].split("|")]
    return dict(zip(FAMILIES, cells, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_are_given_as_the_page_says(tmp_path, family):
    own = FAMILIES[family]
    counted = Counted(own, tmp_path)
    graphed = Counted(own, tmp_path / "graphed")
    model = graphed.graphed()
    found = {
        "attention node, one by one": counted.attention(counted.pair.attention, 1),
        "attention node, recorded": graphed.attention(model, 1),
        "attention node, recorded, 2 micro-batches": graphed.attention(model, 2),
        "expert node, one by one": counted.experts(recorded=False),
        "expert node, recorded": counted.experts(recorded=True),
    }
    colocated = Counted(own, tmp_path / "colocated")
    eager = colocated.colocated(recorded=False)
    assert len(eager) % LAYERS == 0, eager
    found["colocated, one by one"] = eager[: len(eager) // LAYERS]
    told = {row: on_page(row)[family] for row in found}
    assert {row: len(given) for row, given in found.items()} == told, found
    steps = colocated.colocated(recorded=True)
    assert len(steps) == on_page("colocated, recorded: a whole step")[family], steps
