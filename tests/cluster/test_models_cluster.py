"""Every family through whole nodes that run out of memory: preemption and prefix hits."""

from pathlib import Path

import pytest
import torch

from megainfer.models.registry import load_spec
from tests.support.checkpoints import (
    FAMILIES,
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.local_cluster import LocalCluster, greedy_submit

NEW_TOKENS = 22
BLOCKS = 7  # of each attention node: its requests begin with 4 or 5 and would end with 12
LENGTHS = (12, 13, 14, 15, 13, 12, 14, 19)


def prompts_of(seed: int) -> list[list[int]]:
    """Random prompts, the first tokens of all being the same."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(160, (len(LENGTHS), max(LENGTHS)), generator=generator).tolist()
    return [rows[0][:9] + row[9:length] for row, length in zip(rows, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    """A family's first shape, prompts, and the oracle's answers."""
    family, variant = request.param, next(iter(FAMILIES[request.param]))
    folder = write_checkpoint(family, variant, tmp_path_factory.mktemp(family))
    return folder, *decisive(oracle(folder), prompts_of, NEW_TOKENS)


def served(cluster: LocalCluster, round_: str, prompts: list[list[int]]) -> list[list[int]]:
    names = [f"{round_}-{i}" for i in range(len(prompts))]
    for i, prompt in enumerate(prompts):
        cluster.submit(i % 2, greedy_submit(names[i], prompt, NEW_TOKENS))
    cluster.drain()
    return [cluster.answers[name].tokens for name in names]


@pytest.mark.parametrize("reference", FAMILIES, indirect=True, scope="module")
def test_preemption_and_prefix_hits_change_nothing(reference):
    folder, prompts, expected = reference
    spec = load_spec(folder)
    room = BLOCKS * 16 * spec.kv_bytes_per_token(4)
    options = {"max_model_len": 48, "kv_cache_memory": room, "max_num_batched_tokens": 12}
    expert_nodes = min(3, spec.num_experts)  # a dense model has one
    cluster = LocalCluster(folder, 3, 2, expert_nodes, **options)
    assert_same_greedy(expected, served(cluster, "cold", prompts))
    counters = [node.scheduler.counters() for node in cluster.attention]
    assert sum(counter["preemptions"] for counter in counters) > 0
    for name in ("first", "again"):
        assert served(cluster, name, prompts[-1:]) == [expected[-1].tokens]
    # A block's keys and values are of no use without the state that belongs to them.
    cached = 0 if cluster.plan.spec.is_recurrent else 16
    assert cluster.answers["again-0"].cached_tokens == cached
    assert cluster.free_blocks() == [BLOCKS, BLOCKS]
