"""What nodes go through while they serve, on the GPU's kernels, interpreted: experts that move, a
node that leaves, memory that is nobody's, other weights. No token changes but by the last."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.checkpoint.reader import WeightReader
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.loading import ExpertLoader
from megainfer.models.sources import FfnSources
from megainfer.topology import Placement, WeightVersion, placement_of
from tests.support.canaries import fill_unused
from tests.support.checkpoints import decisive, oracle, write_checkpoint
from tests.support.gpu_cluster import SECONDS, GpuCluster, short_prompts
from tests.support.local_cluster import greedy_submit

TWO_LAYERS = {"num_hidden_layers": 2}
OPTIONS: dict[str, Any] = {
    "kernels": "reference",
    "dtype": "float32",
    "max_model_len": 48,
    "max_num_batched_tokens": 12,
    "prefix_cache": False,
}
NEW_TOKENS = 5


def begun(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> GpuCluster:
    cluster = GpuCluster(folder, 1, 1, 2, **OPTIONS)
    for i, prompt in enumerate(prompts):
        cluster.submit(0, greedy_submit(str(i), prompt, tokens))
    return cluster


def tokens_of(cluster: GpuCluster) -> list[list[int]]:
    answers = cluster.answers.values()
    assert not [answer.failure for answer in answers if answer.failure]
    return [answer.tokens for answer in answers]


def serve_until(cluster: GpuCluster, tokens: int) -> None:
    """Some answer has so many. Before each turn blocks that nobody has are filled with NaN."""
    (node,) = cluster.attention
    while max(len(answer.tokens) for answer in cluster.answers.values()) < tokens:
        fill_unused(node, torch.nan)
        cluster.turn()


def bring(model: ExpertModel, folder: Path, placement: Placement) -> None:
    """All that the node lacks of a placement."""
    missing = model.missing(placement)
    assert missing, "nothing is to move"
    with WeightReader(folder) as reader:
        for layer, expert in missing:
            loader = ExpertLoader(FfnSources(model.spec, layer), reader)
            model.take_in((layer, expert), loader.prepared(model.layer(layer), expert))


def dealt(cluster: GpuCluster, nodes: int, first: int) -> Placement:
    """Expert e on node e + first, in turn."""
    spec = cluster.plan.spec
    owners = tuple(((expert + first) % nodes,) for expert in range(spec.num_experts))
    return placement_of(nodes, dict.fromkeys(spec.moe_layers, owners))


def test_experts_move_and_a_node_leaves_and_tokens_are_those_of_transformers(tmp_path: Path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path, **TWO_LAYERS)
    prompts, expected = decisive(oracle(folder), short_prompts, NEW_TOKENS)
    cluster = begun(folder, prompts, NEW_TOKENS)
    for tokens, placement in ((1, dealt(cluster, 2, 1)), (3, dealt(cluster, 1, 0))):
        serve_until(cluster, tokens)
        staying = tuple(range(placement.num_nodes))
        for node in staying:
            bring(cluster.experts[node]._model, folder, placement)
        was = cluster.membership
        cluster.enter(replace(was, epoch=was.epoch + 1, placement=placement, experts=staying))
    cluster.drain(SECONDS)
    assert tokens_of(cluster) == [greedy.tokens for greedy in expected]


@pytest.mark.slow
def test_requests_go_on_with_other_weights(tmp_path: Path):
    old, new = (
        write_checkpoint("qwen3_moe", "gqa", tmp_path / name, seed=seed, **TWO_LAYERS)
        for seed, name in enumerate(("old", "new"))
    )
    prompts = short_prompts(0)
    cluster = begun(old, prompts, NEW_TOKENS)
    serve_until(cluster, 2)
    was = cluster.membership
    cluster.enter(
        replace(was, epoch=was.epoch + 1, weights=WeightVersion(1, "new")),
        switches=cluster.switches_to(new),
    )
    cluster.drain(SECONDS)
    counts = [answer.weights.count("0") for answer in cluster.answers.values()]
    assert 2 <= max(counts) < NEW_TOKENS
    before = begun(old, prompts, NEW_TOKENS)
    before.drain(SECONDS)
    found = tokens_of(cluster)
    longer = [
        prompt + own[:count] for prompt, own, count in zip(prompts, found, counts, strict=True)
    ]
    after = begun(new, longer, NEW_TOKENS)
    after.drain(SECONDS)
    for own, count, first, then in zip(
        found, counts, tokens_of(before), tokens_of(after), strict=True
    ):
        assert own == first[:count] + then[: NEW_TOKENS - count]
