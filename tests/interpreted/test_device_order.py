"""Whole nodes on interpreted kernels and a device that works late and out of order: what a kernel
reads and writes is in an order with all else, or the device tells."""

from typing import Any

import pytest
import torch

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.stage_graphs import StageBounds
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_device import FakeDevice
from tests.support.forgotten_waits import (
    WAITS,
    delay_readbacks,
    forget_messages,
    forget_replies,
)
from tests.support.happens_before import Race
from tests.support.local_cluster import LocalCluster, greedy_submit

TWO_LAYERS = {"num_hidden_layers": 2}
FAMILIES = [("qwen3_moe", "gqa", TWO_LAYERS), ("deepseek_v3", "groups", TWO_LAYERS)]
PROMPTS = [list(range(3, 12)), [7, 8, 9]]  # the first in two chunks
SECONDS = 110  # less than a test may take: the interpreter needs long
SEEDS = 8
"""Orders of a device's work; in some of them the host happens to see by other events what it
doesn't wait for."""
SMALL: dict[str, Any] = {"max_num_batched_tokens": 8}


@pytest.fixture(autouse=True)
def _weights_are_loaded_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one whose operations of torch are work of the device."""
    monkeypatch.setattr(WeightReader, "share", lambda reader, load, items: load(items))


class RecordedCluster(FakeCluster):
    """Expert nodes give their device stages that it has recorded."""

    def _expert_model(self, node: int) -> ExpertModel:
        model = super()._expert_model(node)
        model.record(StageBounds(messages=2, rows=16, most_bytes=0), lambda done, total: None)
        return model


def gpu(device: FakeDevice) -> GpuBackend:
    return GpuBackend(torch.float32, torch.float32, device)


def answered(cluster: LocalCluster) -> list[list[int]]:
    for i, prompt in enumerate(PROMPTS):
        cluster.submit(0, greedy_submit(str(i), prompt, 2 + i))
    cluster.drain(SECONDS)
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    return [cluster.answers[str(i)].tokens for i in range(len(PROMPTS))]


@pytest.mark.parametrize("kind", [FakeCluster, RecordedCluster])
@pytest.mark.parametrize(("family", "variant", "settings"), FAMILIES)
def test_tokens_are_those_of_the_reference_on_the_host(
    tmp_path, family, variant, settings, kind, monkeypatch
):
    folder = write_checkpoint(family, variant, tmp_path, **settings)
    host = LocalCluster(folder, 2, 1, 2, kernels="reference", dtype="float32", **SMALL)
    delay_readbacks(monkeypatch)
    late = kind(FakeDevice(), folder, 2, 1, 2, backend=gpu, **SMALL)
    assert answered(late) == answered(host)


@pytest.mark.parametrize(
    ("kind", "forgotten"),
    [
        *((FakeCluster, wait) for wait in WAITS),
        (RecordedCluster, forget_messages),
        (RecordedCluster, forget_replies),
    ],
)
def test_a_wait_that_is_left_out_is_found(tmp_path, monkeypatch, kind, forgotten):
    family, variant, settings = FAMILIES[0]
    folder = write_checkpoint(family, variant, tmp_path, **settings)
    delay_readbacks(monkeypatch)

    def serve_in_all_orders() -> None:
        for seed in range(SEEDS):
            cluster = kind(FakeDevice(seed), folder, 2, 1, 2, backend=gpu, **SMALL)
            forgotten(cluster, monkeypatch)
            answered(cluster)

    with pytest.raises(Race):
        serve_in_all_orders()
