"""Whole instances with nodes of several ranks on GPUs, which are pretended: the processes are real,
and so are the collectives between them, by gloo in place of NCCL."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import assert_same_greedy, greedy, oracle, write_checkpoint
from tests.support.pretended_serve import GPUS
from tests.support.served import Served, answer, run_module

PROMPTS = [[n + 1, 7, 9, n] * 9 for n in range(4)]
TOKENS = 60
NCCL_SECONDS = 60.0
KINDS = {
    "attent": ("--attn-device", "cuda", "--ffn-device", "cpu", "--attn-tp", "2"),
    "expert": ("--attn-device", "cpu", "--ffn-device", "cuda", "--ffn-tp", "2"),
}
"""By the name of processes whose ranks are on GPUs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("qwen2_moe", "gqa", tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(folder: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    options = ("--dtype", "float32", "--micro-batches", "2", "--max-num-seqs", "4")
    program = "tests.support.pretended_serve"
    server = Served(
        [str(folder), *options, *KINDS[request.param]], program=program, environment={GPUS: "2"}
    )
    yield server
    server.kill()


def answers(served: Served, meanwhile: Callable[[], object] = lambda: None) -> list[list[int]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        asked = [pool.submit(answer, served, prompt, TOKENS) for prompt in PROMPTS]
        meanwhile()
        return [each.result() for each in asked]


@pytest.mark.parametrize(
    ("served", "role"), [(role, role) for role in KINDS], indirect=["served"], ids=[*KINDS]
)
def test_tokens_are_transformers_also_when_a_rank_is_lost(
    folder: Path, served: Served, role: str
) -> None:
    assert "2 ranks, GPUs 0 | 1  cores" in served.output
    expected = greedy(oracle(folder), PROMPTS, TOKENS)
    undisturbed = answers(served)
    assert_same_greedy(expected, undisturbed)
    ranks = [served.node(f"{role}-0"), served.node(f"{role}-0.1")]
    assert answers(served, lambda: os.kill(ranks[1], signal.SIGKILL)) == undisturbed
    assert not {*ranks} & {served.node(f"{role}-0"), served.node(f"{role}-0.1")}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_on_a_gpu_compute_by_nccl_what_one_does(folder: Path, dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    words = ("nccl", str(folder), dtype)
    done = run_module("tests.support.rank_groups", words, os.environ, NCCL_SECONDS)
    assert done.stdout.splitlines()[-1:] == ["right"], done
