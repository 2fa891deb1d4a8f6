"""A whole step of the GPU's half and experts on a device without values: nobody asks it for any."""

from collections.abc import Iterator

import pytest
import torch

from megainfer.attention_node.graphs import Bucket
from megainfer.colocated.graphs import GraphedSteps
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.expert_node.stage_graphs import StageBounds
from megainfer.instruments.stage_clock import StageClock
from megainfer.m2n.mailbox import Dispatch
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import CLOCK, blocks_of, open_pair
from tests.support.valueless_device import (
    ValuelessDevice,
    assert_reads_its_tokens_only,
    refuse_copies,
    valueless_device,
)

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v32", "nine_positions"),  # latent attention to positions that are chosen
    ("qwen3_next", "grouped"),  # recurrent states
    ("gpt_oss", "alternating"),  # sinks, windows, biases
    ("llama4_text", "maverick"),  # chunks, temperature
]


@pytest.fixture(scope="module")
def device() -> Iterator[ValuelessDevice]:
    with valueless_device() as device:
        yield device


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_a_step_reads_nothing_of_a_gpu_but_its_tokens(tmp_path, device, family, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", refuse_copies)
    backend = GpuBackend(torch.float32, torch.float32, device)
    assert_reads_its_tokens_only(write_checkpoint(*family, tmp_path), backend, device)
    assert device.launched


def test_what_is_recorded_reads_nothing_at_all(tmp_path, device, monkeypatch):
    """Neither a colocated step nor an expert node's stage, when it is recorded or replayed."""
    monkeypatch.setattr(torch.Tensor, "cpu", refuse_copies)
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    pair = open_pair(folder, 1, GpuBackend(torch.float32, torch.float32, device))
    (experts,), spec = pair.experts, pair.attention.spec
    device.read_backs.clear()
    with device.mode:
        alone = ColocatedModel(pair.attention, experts, pair.kv, StageClock())
        model = GraphedSteps(alone, pair.kv, [Bucket(2, 32)], 0)
        batch = build_batch([ChunkInput([3], 7, blocks_of(0), True, 0)], device)
        model.advance(model.embed(batch), 0, batch, pair.kv, CLOCK)
        experts.record(StageBounds(1, 8, 0), lambda done, total: None)
        hidden = device.empty((5, spec.hidden_size), torch.float32)
        ids = device.empty((5, spec.top_k), torch.int32)
        count, out = device.empty((1,), torch.int32), torch.empty_like(hidden)
        layer = spec.first_moe_layer
        message = Dispatch(0, 0, layer, 0, hidden, ids, ids.float(), count)
        experts.forward(layer, [message], [out])
    assert device.read_backs == []
    assert model.counters()["graph_replays"] == 1
    monkeypatch.undo()
    assert experts.counters()["graph_replays"] == 1
