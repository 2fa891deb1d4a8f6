"""KV caches of eight bits through whole nodes: an answer depends on its own tokens only."""

from pathlib import Path

import pytest
import torch

from megainfer.compute.cpu.kernels import library
from megainfer.config import EngineConfig
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.memory import kv_block_bytes
from tests.support.checkpoints import write_checkpoint
from tests.support.local_cluster import LocalCluster, greedy_submit
from tests.support.ranks import RankedCluster, half_outputs

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the CPU kernels were not built")

FAMILIES = {"qwen3_moe": "gqa", "deepseek_v3": "groups", "gpt_oss": "alternating"}
LENGTHS = (3, 9, 14, 15, 16, 50)
NEW_TOKENS = 30
BLOCKS = 7  # one request of 96 tokens needs 6


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(request.param, FAMILIES[request.param], place)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(160, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.mark.parametrize("kept", ["int8", "fp8"])
def test_answers_survive_preemption_and_prefix_hits(folder, kept):
    """Alone, each prompt in one chunk; then in a crowd, in small chunks, evicted and computed
    again; then over blocks that another request has filled."""
    options = {"max_model_len": 96, "kv_cache_dtype": kept, "kernels": "cpu"}
    alone = []
    for prompt in prompts():
        cluster = LocalCluster(folder, 1, 1, 2, **options)
        cluster.submit(0, greedy_submit("a", prompt, NEW_TOKENS, logprobs=1))
        cluster.drain()
        alone.append(cluster.answers["a"])
    wish = EngineConfig(str(folder), **options)
    plan = make_plan(wish, folder, read_machine())
    room = BLOCKS * kv_block_bytes(plan.spec, plan.precision)
    crowd = LocalCluster(
        folder, 2, 1, 2, kv_cache_memory=room, max_num_batched_tokens=16, **options
    )
    assert crowd.plan.num_blocks == BLOCKS
    for i, prompt in enumerate(prompts()):
        crowd.submit(0, greedy_submit(str(i), prompt, NEW_TOKENS, logprobs=1))
    crowd.drain()
    assert crowd.attention[0].scheduler.counters()["preemptions"] > 0
    for name in ("once", "again"):
        crowd.submit(0, greedy_submit(name, prompts()[-1], NEW_TOKENS, logprobs=1))
        crowd.drain()
    assert crowd.answers["again"].cached_tokens == 48
    for name, expected in [*((str(i), a) for i, a in enumerate(alone)), ("again", alone[-1])]:
        assert crowd.answers[name].tokens == expected.tokens
        assert crowd.answers[name].logprobs == expected.logprobs


@pytest.mark.parametrize("kept", ["int8", "fp8"])
def test_ranks_keep_their_own_heads(folder, kept):
    """Each head has scales of its own, so ranks keep what one would: results differ by the order of
    additions, and where that is the next code by as much as a code."""
    found = []
    for ranks in (1, 2):
        cluster = RankedCluster(folder, 1, 1, 1, attn_tp=ranks, kv_cache_dtype=kept, kernels="cpu")
        found.append(half_outputs(cluster, prompts()))
        cluster.close()
    for whole, summed in zip(*found, strict=True):
        assert (whole - summed).abs().max() <= 5e-3 * whole.abs().max()
