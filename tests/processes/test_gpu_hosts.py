"""Two hosts whose GPUs are pretended: tokens are those of one host, over the road between GPUs of a
host and over groups between hosts; what becomes of a node that is lost, and of a host.

The processes are real, and the roads, but for what a device's memory and NCCL's groups are; see
tests/support/gpu_hosts.py.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.processes.launched import await_output
from tests.support.chaos.instance import write_model
from tests.support.gpu_site import GpuSite, Hosts, gpu_site
from tests.support.served import answer, serving, stream, tokens_of

PROMPTS = ([1, 2, 3], [5, 6, 7, 8] * 8)
TOKENS, LONG = 16, 80
OPTIONS = (
    *("--ffn-gpus", "2", "--micro-batches", "2", "--dtype", "float32", "--max-num-seqs", "4"),
    *("--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)
PLACES = ("attention.0=left", "expert.0=left", "expert.1=right")
OFFERED = "1,3,0"
"""Of left's, in this order: the last is nobody's at first."""
HOSTS: Hosts = {"left": (("0", "4"), ("--gpus", OFFERED)), "right": (("4", "1"), ())}
OTHERS = ("10", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, list[int]]:
    with serving(str(model), *OPTIONS, "--kernels", "reference") as served:
        return {
            **{index: answer(served, prompt, TOKENS) for index, prompt in enumerate(PROMPTS)},
            LONG: answer(served, PROMPTS[0], LONG),
        }


def hosts_serving(model: Path, folder: Path, *options: str) -> AbstractContextManager[GpuSite]:
    places = [word for place in PLACES for word in ("--place", place)]
    return gpu_site(folder, HOSTS, [str(model), *OPTIONS, *places, *options])


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuSite]:
    moves = ("--agent-lease", "3", "--move-nodes-after", "1")
    with hosts_serving(model, tmp_path_factory.mktemp("site"), *moves) as site:
        yield site


def test_tokens_are_those_of_one_host(site: GpuSite, expected: dict[int, list[int]]) -> None:
    for index, prompt in enumerate(PROMPTS):
        assert answer(site.served, prompt, TOKENS) == expected[index]
    assert "host left has joined (127.0.0.2, " in site.served.output
    assert "cores, 3 GPUs)" in site.served.output
    assert "attention 0  on left, GPU 1 " in site.served.output
    assert "expert 0     on left, GPU 3 " in site.served.output
    assert "expert 1     on right, GPU 0 " in site.served.output
    assert "M2N        ipc on a host, dist (nccl) between hosts" in site.served.output
    assert "attention node 0 meets expert node 0 over ipc" in site.served.output
    assert "attention node 0 meets expert node 1 over dist" in site.served.output


def test_a_killed_node_comes_back_and_streams_go_on(
    site: GpuSite, expected: dict[int, list[int]]
) -> None:
    for host, name in (("left", "expert-0"), ("right", "expert-1"), ("left", "attent-0")):
        events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
        told = tokens_of(next(events))
        os.kill(site.agents[host].nodes()[name], signal.SIGKILL)
        for event in events:
            told += tokens_of(event)
        assert told == expected[LONG], name


def test_a_node_of_a_lost_host_is_moved_to_a_gpu_that_is_free(
    site: GpuSite, expected: dict[int, list[int]]
) -> None:
    """And is reached by the other road from then on."""
    events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
    told = tokens_of(next(events))
    site.agents["right"].kill()
    for event in events:
        told += tokens_of(event)
    assert told == expected[LONG]
    assert {"expert-0", "expert-1"} < set(site.agents["left"].nodes())
    assert "attention node 0 meets expert node 1 over ipc" in site.served.output


def test_a_host_that_comes_back_with_other_gpus_has_its_nodes_on_those(
    site: GpuSite, expected: dict[int, list[int]]
) -> None:
    """The last host, with all nodes; as long as it offers too few, those without wait."""
    events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
    told = tokens_of(next(events))
    site.agents["left"].kill()
    site.join("left", OTHERS, "--gpus", "1")
    for number, node in ((3, 0), (0, 1)):
        said = f"host left came back without GPU {number} with room for expert node {node}"
        await_output(site.served, lambda output, said=said: said in output)
    site.agents["left"].kill()
    site.join("left", OTHERS, "--gpus", OFFERED)
    for event in events:
        told += tokens_of(event)
    assert told == expected[LONG]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["--attn-device", "--ffn-device"])
def test_one_role_on_cpus_is_reached_through_the_hosts_memory(
    model: Path, expected: dict[int, list[int]], tmp_path: Path, role: str
) -> None:
    options = (role, "cpu", "--kernels", "reference")
    with hosts_serving(model, tmp_path, *options) as site:
        assert "M2N        shm on a host, dist (gloo) between hosts" in site.served.output
        for index, prompt in enumerate(PROMPTS):
            assert answer(site.served, prompt, TOKENS) == expected[index]
