"""Stages recorded with Triton's kernels: they see a bucket's bounds on the host, and on the device
padding beside the step's own rows."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.graphs import Bucket, GraphedModel
from megainfer.compute.batch import ChunkInput
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import Pair, blocks_of, open_pair
from tests.support.recording_device import RecordingDevice

FLOAT32 = (torch.float32, torch.float32)
BUCKETS = (Bucket(4, 32),)
SOAK = (pytest.mark.slow, pytest.mark.timeout(1800))
FAMILIES = [
    ("qwen3_moe", "gqa"),
    ("qwen3_next", "grouped"),  # recurrent states
    pytest.param(("gpt_oss", "alternating"), marks=SOAK),  # sinks, windows, biases
    pytest.param(("deepseek_v3", "groups"), marks=SOAK),  # latents
]


def steps() -> Iterator[Sequence[ChunkInput]]:
    """Three prompts, then tokens of all, and of two."""
    tokens = torch.randint(150, (3, 40), generator=torch.Generator().manual_seed(5)).tolist()
    done = [0] * 3
    for lengths in ((5, 2, 18), (1, 1, 1), (1, 0, 1)):
        chunks = []
        for i, length in enumerate(lengths):
            new = tokens[i][done[i] : done[i] + length]
            chunks.append(ChunkInput(new, done[i], blocks_of(i), True, i))
            done[i] += length
        yield [chunk for chunk in chunks if chunk.token_ids]


def logits_of(pair: Pair) -> Tensor:
    return torch.cat([pair.step(chunks) for chunks in steps()])


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_logits_equal_the_references(tmp_path, family):
    folder, nodes = write_checkpoint(*family, tmp_path), 2
    graphed = open_pair(folder, nodes, GpuBackend(*FLOAT32, RecordingDevice()))
    spec = graphed.attention.spec
    placement = contiguous_placement(spec.num_experts, nodes, spec.moe_layers)
    model = GraphedModel(graphed.attention, graphed.kv, BUCKETS, 1, placement)
    graphed.attention = model  # type: ignore[assignment]
    reference = logits_of(open_pair(folder, nodes, ReferenceBackend(*FLOAT32)))
    torch.testing.assert_close(logits_of(graphed), reference, atol=1e-4, rtol=1e-4)
    counters = model.counters()
    stages = len(spec.moe_layers) + (spec.moe_layers[-1] + 1 < len(spec.layers))
    assert (counters["graph_replays"], counters["eager_stages"]) == (2 * stages, stages)
