"""Two hosts whose GPUs are pretended, and nodes of two ranks, each on GPUs of one host: tokens,
ranks that are killed, and a node that is moved to two GPUs of the other host.

The processes are real, and so are the collectives between ranks, by gloo in place of NCCL; see
tests/support/gpu_hosts.py.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import assert_same_greedy, greedy, oracle, write_checkpoint
from tests.support.gpu_site import GpuSite, Hosts, gpu_site
from tests.support.served import answer, streamed

PROMPTS = [[n + 1, 7, 9, n] * 9 for n in range(2)]
TOKENS = 60
LONG = 120
"""Tokens of a stream that lasts, of so small a model, until something happens to it."""
HOSTS: Hosts = {"left": (("0", "4"), ()), "right": (("4", "2"), ())}
OPTIONS = (
    *("--attn-tp", "2", "--ffn-tp", "2", "--dtype", "float32", "--micro-batches", "2"),
    *("--max-num-seqs", "4", "--agent-lease", "3", "--move-nodes-after", "1"),
)
NODES = (("left", "attent-0"), ("right", "expert-0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint("qwen2_moe", "gqa", folder, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuSite]:
    folder = tmp_path_factory.mktemp("site")
    with gpu_site(folder, HOSTS, [str(model), *OPTIONS], "cpu") as site:
        yield site


@pytest.fixture(scope="module")
def undisturbed(site: GpuSite) -> list[int]:
    return answer(site.served, PROMPTS[0], LONG)


def test_tokens_are_transformers_with_the_ranks_of_a_node_on_one_host(
    model: Path, site: GpuSite
) -> None:
    told = [answer(site.served, prompt, TOKENS) for prompt in PROMPTS]
    assert_same_greedy(greedy(oracle(model), PROMPTS, TOKENS), told)
    output = site.served.output
    assert "attention 0  on left, 2 ranks, GPUs 0 | 1  cores" in output
    assert "expert 0     on right, 2 ranks, GPUs 0 | 1  cores" in output
    assert "attention node 0 meets expert node 0 over dist" in output
    for host, name in NODES:
        assert {name, f"{name}.1"} == set(site.agents[host].nodes())


@pytest.mark.parametrize(("host", "name"), NODES)
def test_a_killed_rank_has_its_node_come_back(
    site: GpuSite, undisturbed: list[int], host: str, name: str
) -> None:
    before = set(site.agents[host].nodes().values())
    told = streamed(
        site.served,
        PROMPTS[0],
        LONG,
        lambda: os.kill(site.agents[host].nodes()[f"{name}.1"], signal.SIGKILL),
    )
    assert told == undisturbed
    assert f"rank 1: killed by SIGKILL (on host {host})" in site.served.output
    assert not before & set(site.agents[host].nodes().values()), "both ranks are others"


def test_a_node_of_a_lost_host_is_moved_to_as_many_gpus(
    site: GpuSite, undisturbed: list[int]
) -> None:
    """Which left has beside those of its own node; it is reached by the road there."""
    assert streamed(site.served, PROMPTS[0], LONG, site.agents["right"].kill) == undisturbed
    names = {own for _, name in NODES for own in (name, f"{name}.1")}
    assert names == set(site.agents["left"].nodes())
    assert "attention node 0 meets expert node 0 over ipc" in site.served.output
