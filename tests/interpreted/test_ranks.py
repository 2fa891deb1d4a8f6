"""Nodes of several ranks on the GPU's kernels, interpreted: processes that tell each other rows by
collectives, gloo's in place of NCCL's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megainfer.compute.backend import Backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.other_ranks import Rank
from megainfer.expert_node.stage_graphs import StageBounds
from tests.support.checkpoints import decisive, oracle, write_checkpoint
from tests.support.gpu_cluster import SECONDS, GpuRankedCluster, short_prompts
from tests.support.local_cluster import answers_of, submit_all
from tests.support.rank_groups import NEAR, distance
from tests.support.ranks import unheard

NEW_TOKENS = 4
OPTIONS: dict[str, Any] = {"kernels": "cpu", "dtype": "float32", "max_model_len": 48}
NewCluster = Callable[..., GpuRankedCluster]


@pytest.fixture
def new_cluster() -> Iterator[NewCluster]:
    made: list[GpuRankedCluster] = []

    def make(
        folder: Path, *sizes: int, kind: Any = GpuRankedCluster, **options: Any
    ) -> GpuRankedCluster:
        made.append(kind(folder, *sizes, **OPTIONS, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


FAMILIES = [
    ("deepseek_v3", "groups"),  # latent attention, shared experts, dense layers
    ("qwen3_next", "grouped"),  # recurrent layers, gated shared experts
    # Sinks, windows, biases.
    pytest.param(("gpt_oss", "alternating"), marks=pytest.mark.slow, id="gpt_oss-alternating"),
]


class RecordedRanks(GpuRankedCluster):
    """Whose experts' stages each rank has recorded, without what ranks tell each other."""

    def _part(self, node: int, backend: Backend, rank: Rank) -> ExpertModel:
        model = super()._part(node, backend, rank)
        model.record(StageBounds(messages=1, rows=12, most_bytes=1 << 30), unheard)
        return model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "-".join(family))
def test_tokens_are_those_of_transformers(tmp_path, family, new_cluster):
    """Of attention and expert nodes of two ranks each, one prompt in chunks beside the other's
    tokens."""
    folder = write_checkpoint(*family, tmp_path)
    prompts, expected = decisive(oracle(folder), short_prompts, NEW_TOKENS)
    cluster = new_cluster(folder, 1, 1, 2, attn_tp=2, ffn_tp=2, max_num_batched_tokens=12)
    submit_all(cluster, prompts, NEW_TOKENS)
    cluster.drain(SECONDS)
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    assert answers_of(cluster, prompts) == [greedy.tokens for greedy in expected]


@pytest.mark.parametrize("dtype", NEAR)
def test_a_half_of_two_ranks_is_that_of_one(tmp_path, dtype):
    """As the test on a GPU has it, by NCCL."""
    folder = write_checkpoint("qwen2_moe", "gqa", tmp_path)
    assert 0 < distance("gloo", str(folder), dtype) < NEAR[dtype]


def test_each_rank_records_what_it_computes_of_experts(tmp_path, new_cluster):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path, num_hidden_layers=1)
    prompts, expected = decisive(oracle(folder), short_prompts, NEW_TOKENS)
    cluster = new_cluster(folder, 1, 1, 1, kind=RecordedRanks, ffn_tp=3, max_num_batched_tokens=12)
    submit_all(cluster, prompts, NEW_TOKENS)
    cluster.drain(SECONDS)
    assert answers_of(cluster, prompts) == [greedy.tokens for greedy in expected]
    told = cluster.experts[0]._model.counters()
    assert told["graph_replays"] > 0
    assert told["eager_stages"] == 0
