"""Whole decode steps of a colocated model, recorded with Triton's kernels: bit for bit what is
computed one kernel after the other, whatever shares the step."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.graphs import Bucket
from megainfer.colocated.graphs import GraphedSteps
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.device import HostDevice
from megainfer.instruments.stage_clock import StageClock
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import CLOCK, blocks_of, open_pair
from tests.support.recording_device import FullDevice, RecordingDevice

BUCKETS = (Bucket(2, 40), Bucket(4, 40))
SOAK = (pytest.mark.slow, pytest.mark.timeout(1800))
FAMILIES = [
    ("qwen3_moe", "gqa"),
    ("qwen3_next", "grouped"),  # recurrent states, shared experts
    pytest.param(("gpt_oss", "alternating"), marks=SOAK),  # sinks, windows, biases
    pytest.param(("deepseek_v3", "groups"), marks=SOAK),  # latents, dense layers
]
LENGTHS = ((5, 2, 18), (1, 1, 1), (1, 0, 1), (0, 1, 0))
"""Of what three sequences add in each step: prompts, then tokens."""


class Colocated:
    """A model whose rows don't depend on their company, with its steps recorded or not."""

    def __init__(self, folder: Path, device: HostDevice, recorded: bool) -> None:
        backend = GpuBackend(torch.float32, torch.float32, device, invariant=True)
        pair = open_pair(folder, 1, backend)
        (self.experts,), self.kv = pair.experts, pair.kv
        alone = ColocatedModel(pair.attention, self.experts, pair.kv, StageClock())
        self.model: ColocatedModel | GraphedSteps = alone
        if recorded:
            self.model = GraphedSteps(alone, pair.kv, BUCKETS, 2000)

    def step(self, chunks: Sequence[ChunkInput]) -> Tensor:
        batch = build_batch(chunks, self.kv.device)
        x = self.model.embed(batch)
        assert self.model.advance(x, 0, batch, self.kv, CLOCK) is None
        return self.model.logits(x, batch.sample_rows)


def steps() -> list[list[ChunkInput]]:
    tokens = torch.randint(150, (3, 40), generator=torch.Generator().manual_seed(5)).tolist()
    done, found = [0] * 3, []
    for lengths in LENGTHS:
        own = [n for n, length in enumerate(lengths) if length]
        found.append(
            [
                ChunkInput(
                    *(tokens[n][done[n] : done[n] + lengths[n]], done[n], blocks_of(n), True, n)
                )
                for n in own
            ]
        )
        done = [a + b for a, b in zip(done, lengths, strict=True)]
    return found


def logits_of(model: Colocated) -> list[Tensor]:
    return [model.step(chunks) for chunks in steps()]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_steps_are_those_that_were_not_recorded(tmp_path, family):
    folder = write_checkpoint(*family, tmp_path)
    device = RecordingDevice()
    ours, theirs = Colocated(folder, device, True), Colocated(folder, HostDevice(), False)
    assert all(map(torch.equal, logits_of(ours), logits_of(theirs)))
    assert len(device.told) == 3, "one replay a step of tokens"
    told = ours.model.counters()
    assert (told["graphs"], told["graph_replays"], told["eager_stages"]) == (len(BUCKETS), 3, 1)
    counted, expected = ours.experts.counters(), theirs.experts.counters()
    assert counted["expert_tokens"] == expected["expert_tokens"], "padding went to an expert"
    assert counted["expert_reads"] == expected["expert_reads"]


def test_steps_without_room_are_computed_as_ever(tmp_path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    ours, theirs = Colocated(folder, FullDevice(), True), Colocated(folder, HostDevice(), False)
    assert all(map(torch.equal, logits_of(ours), logits_of(theirs)))
    told = ours.model.counters()
    assert (told["graphs"], told["graph_replays"], told["eager_stages"]) == (1, 3, 1)
