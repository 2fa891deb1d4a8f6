"""Stages that a device has recorded: they compute what is computed without, whatever shares their
step; what nobody recorded is computed as ever; on a device that repeats its work to the letter."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.graphs import GraphedModel, buckets_of
from megainfer.attention_node.graphs.aside import StepsAside
from megainfer.attention_node.graphs.buckets import fitting_bucket
from megainfer.attention_node.graphs.fixed import FixedStep
from megainfer.attention_node.graphs.kept import KeptPoint
from megainfer.attention_node.model import AttentionModel, MoEPoint
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.m2n.mailbox import Part
from megainfer.models.spec import MoESpec
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.graph_steps import BUCKETS, FAMILIES, STEPS, FullDevice
from tests.support.node_pair import CLOCK, FLOAT32, Pair, load_pair, open_pair

MOST_BYTES = 2000

Waiting = tuple[MoEPoint, list[Tensor]]


class Graphed:
    """A pair whose attention's stages were recorded; sequence 7, who has the last block, is unused.

    micro-batches take turns as on a node: what a stage gives to experts is read at once, and what
    the shared one gives; what routed ones give back is added when others have had their turn.
    """

    def __init__(self, folder: Path, nodes: int, device: FakeDevice | None = None) -> None:
        self.device, self.told = device or FakeDevice(), list[tuple[int, int]]()
        with TorchWork(self.device):
            self.pair = open_pair(folder, nodes, FakeBackend(self.device))
            model, spec = self.pair.attention, self.pair.attention.spec
            self.placement = contiguous_placement(spec.num_experts, nodes, spec.moe_layers)
            self.model = GraphedModel(
                *(model, self.pair.kv, BUCKETS, MOST_BYTES, self.placement),
                on_graph=lambda done, total: self.told.append((done, total)),
            )

    def steps(self, *steps: Sequence[ChunkInput]) -> list[Tensor]:
        """Logits of several micro-batches' steps."""
        with TorchWork(self.device):
            batches = [build_batch(chunks, self.device) for chunks in steps]
            xs = [self.model.embed(batch) for batch in batches]
            layers: dict[int, int] = dict.fromkeys(range(len(steps)), 0)
            while layers:
                waiting = {i: self._stage(xs[i], batches[i], n) for i, n in layers.items()}
                layers = {
                    i: self._combine(xs[i], *at) for i, at in waiting.items() if at is not None
                }
            pairs = zip(xs, batches, strict=True)
            logits = [self.model.logits(x, batch.sample_rows) for x, batch in pairs]
            return [self.device.read_back(values).take() for values in logits]

    def _stage(self, x: Tensor, batch: StepBatch, layer: int) -> Waiting | None:
        point = self.model.advance(x, layer, batch, self.pair.kv, CLOCK)
        if point is None:
            return None
        outs = [self.pair.computed(node, point) for node in range(len(self.pair.experts))]
        shared = self.model.shared(point.layer, point.hidden)
        if shared is not None:
            x += shared
        return point, outs

    def _combine(self, x: Tensor, point: MoEPoint, outs: list[Tensor]) -> int:
        for part, out in zip(point.parts, outs, strict=True):
            x.index_add_(0, part.rows, out)
        return point.layer + 1


def check_equal(graphed: Graphed, direct: Pair) -> None:
    """Both are given the same steps, and so are their experts."""
    for steps in STEPS:
        for logits, chunks in zip(graphed.steps(*steps), steps, strict=True):
            torch.testing.assert_close(logits, direct.step(chunks), atol=1e-4, rtol=1e-3)
    for ours, theirs in zip(graphed.pair.experts, direct.experts, strict=True):
        counted = ours.counters()["expert_tokens"]
        assert counted == theirs.counters()["expert_tokens"], "padding went to an expert"


def stages_of(direct: Pair) -> int:
    """Of a step; one behind the last experts only where there are layers."""
    spec = direct.attention.spec
    return len(spec.moe_layers) + (spec.moe_layers[-1] + 1 < len(spec.layers))


def shared_of(direct: Pair) -> int:
    """Layers that have a shared expert."""
    ffns = [layer.ffn for layer in direct.attention.spec.layers]
    return sum(isinstance(ffn, MoESpec) and ffn.shared is not None for ffn in ffns)


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_recorded_stages_give_what_is_given_without(tmp_path, family, nodes):
    folder = write_checkpoint(*family, tmp_path)
    direct, graphed = load_pair(folder, nodes, FLOAT32, "reference"), Graphed(folder, nodes)
    graphs = len(BUCKETS) * (stages_of(direct) + shared_of(direct))
    assert graphed.told[-1] == (graphs, graphs)
    check_equal(graphed, direct)
    assert graphed.model.counters() == {
        "graphs": graphs,
        "graph_bytes": 0,  # of a device that counts none
        "graph_replays": 9 * stages_of(direct),
        "eager_stages": 2 * stages_of(direct),  # of prompts
    }


def test_shared_experts_of_recorded_stages_are_recorded(tmp_path, monkeypatch):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    direct, graphed = load_pair(folder, 1, FLOAT32, "reference"), Graphed(folder, 1)
    asked, shared = list[int](), AttentionModel.shared

    def noted(model: AttentionModel, layer: int, hidden: Tensor) -> Tensor | None:
        if model is graphed.pair.attention:
            asked.append(layer)
        return shared(model, layer, hidden)

    monkeypatch.setattr(AttentionModel, "shared", noted)
    check_equal(graphed, direct)
    prompts = len(STEPS[0]) * [*direct.attention.spec.moe_layers]
    assert sorted(asked) == sorted(prompts)
    assert shared_of(direct)


def test_a_shared_expert_that_is_left_out_is_found(tmp_path, monkeypatch):
    """The proof that these tests can fail."""
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    direct = load_pair(folder, 1, FLOAT32, "reference")
    graphed = Graphed(folder, 1)
    monkeypatch.setattr(FixedStep, "shared", property(lambda step: torch.zeros_like(step.hidden)))
    with pytest.raises(AssertionError):
        check_equal(graphed, direct)


def test_a_new_set_of_expert_nodes_is_recorded_anew(tmp_path):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    direct, graphed = load_pair(folder, 1, FLOAT32, "reference"), Graphed(folder, 3)
    told, spec = len(graphed.told), direct.attention.spec
    with TorchWork(graphed.device):
        graphed.model.place(graphed.placement)
        assert len(graphed.told) == told, "nothing has changed"
        only = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
        graphed.model.place(only)
        assert len(graphed.told) == 2 * told
        graphed.pair.experts = open_pair(folder, 1, FakeBackend(graphed.device)).experts
    check_equal(graphed, direct)
    assert graphed.model.counters()["graph_replays"] == 9 * stages_of(direct)


def test_what_has_no_room_is_computed_as_ever(tmp_path):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    direct, graphed = load_pair(folder, 3, FLOAT32, "reference"), Graphed(folder, 3, FullDevice())
    check_equal(graphed, direct)
    counters = graphed.model.counters()
    assert counters["graphs"] == 1
    assert counters["graph_bytes"] > 0
    assert counters["graph_replays"] == 2, "the first stage of steps of the largest bucket"
    assert counters["eager_stages"] == 11 * stages_of(direct) - 2


def only_count(step: FixedStep, count: int) -> None:
    """`FixedStep._pad` that leaves what earlier steps had."""
    step._tokens.fill_(count)


def take_what_is_there(aside: StepsAside, batch: StepBatch, tables: Tensor) -> bool:
    """`StepsAside.take` of what another step has left."""
    return id(batch) in aside._known


def parts_where_others_write(kept: KeptPoint, rows: int) -> list[Part]:
    """`KeptPoint.parts` of what the next step is written over."""
    found: list[list[Tensor | None]] = [[None] * len(Part._fields) for _ in range(kept._nodes)]
    for place, view in kept._looks(kept._memory, rows):
        found[place.node][place.field] = view
    return [Part._make(fields) for fields in found]


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (FixedStep, "_pad", only_count),
        (StepsAside, "take", take_what_is_there),
        (FixedStep, "batch", lambda step: step._batch),
        (KeptPoint, "parts", parts_where_others_write),
    ],
)
def test_what_steps_could_take_for_their_own_is_found(tmp_path, monkeypatch, kind, name, wrong):
    """The proof that these tests can fail: rows of earlier steps, steps and parts that others write
    over, and what one stage derived from another's step."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    direct = load_pair(folder, 3, FLOAT32, "reference")
    monkeypatch.setattr(kind, name, wrong)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check_equal(Graphed(folder, 3), direct)


def test_which_bucket_fits():
    buckets = buckets_of(6, 4096)
    few = [ChunkInput([1], start, [0], True) for start in (5, 2047)]
    assert fitting_bucket(buckets, few) == (2, 2048)
    assert fitting_bucket(buckets, [*few, few[0]]) == (4, 2048)
    assert fitting_bucket(buckets, [ChunkInput([1], 2048, [0], True)]) == (1, 4096)
    assert fitting_bucket(buckets, few * 3) == (6, 2048)
    assert fitting_bucket(buckets, few * 4) is None
    assert fitting_bucket(buckets, [ChunkInput([1, 2], 0, [0], True)]) is None
    assert fitting_bucket(buckets, [ChunkInput([1], 4096, [0], True)]) is None
    assert {bucket.context for bucket in buckets_of(1, 100)} == {100}
