"""A supervisor that moves experts between nodes which serve, as an uneven load asks for."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from megainfer import LLM, SamplingParams
from tests.support.checkpoints import write_checkpoint

SECONDS = 60.0
PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPTS = [[7 * i % 150 + 3, 11, i + 20] for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three of eight experts, which one node holds, are chosen far more often than others."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("skewed"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("mlp.gate.weight"):
            tensor[:3] *= 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def counted(llm: LLM, counter: str) -> list[Any]:
    """By expert node, what it has counted of its layers."""
    counters: dict[str, Any] = llm.stats()
    return [counters[f"expert node {node}"][counter] for node in range(2)]


def held(llm: LLM) -> list[Any]:
    return counted(llm, "experts_held")


def generated(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, PARAMS)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def expected(folder) -> list[list[int]]:
    with LLM(str(folder), ffn_gpus=2, micro_batches=1) as llm:
        return generated(llm)


def serve_until(llm: LLM, happened: Callable[[], bool], expected: list[list[int]]) -> None:
    deadline = monotonic() + SECONDS
    while not happened():
        assert generated(llm) == expected
        assert monotonic() < deadline, "nothing has changed"
    assert generated(llm) == expected


def test_experts_move_while_it_serves_and_answers_stay_the_same(folder, expected):
    with LLM(str(folder), ffn_gpus=2, micro_batches=1, rebalance=2.0) as llm:
        first = held(llm)
        serve_until(llm, lambda: held(llm) != first, expected)
        for layer in range(len(first[0])):
            assert sorted(expert for node in held(llm) for expert in node[layer]) == [*range(8)]


def test_spares_are_sent_tokens_when_that_saves_time(folder, expected):
    options = {"expert_replicas": 1, "rebalance": 2.0}
    with LLM(str(folder), ffn_gpus=2, micro_batches=1, **options) as llm:
        assert [[len(layer) for layer in node] for node in held(llm)] == [[5] * 3] * 2
        assert held(llm)[1][0] == [4, 5, 6, 7, 0]
        tokens = lambda: counted(llm, "expert_tokens")[1][0][0]  # noqa: E731
        assert tokens() == 0
        serve_until(llm, lambda: tokens() > 0, expected)
