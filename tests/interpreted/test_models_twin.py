"""Whole models on the GPU's kernels, interpreted, over the twin of the road between GPUs: their
tokens are transformers', and between them they launch every kernel that there is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from megainfer.compute.gpu.kernels.attention import segments
from megainfer.compute.gpu.kernels.routing import plan
from megainfer.device import HostDevice
from tests.support.checkpoints import decisive, oracle, write_checkpoint
from tests.support.gpu_cluster import (
    SECONDS,
    GpuTwinCluster,
    InvariantCluster,
    short_prompts,
)
from tests.support.kernels_launched import kernels_launched
from tests.support.local_cluster import LocalCluster, greedy_submit

NEW_TOKENS = 4
BEST_OF_ALL: dict[str, Any] = {"temperature": 0.7, "top_k": 1, "top_p": 0.9, "logprobs": 2}
"""What can only draw the best, in as many ways as there are; with edits that change nothing."""
TWO_LAYERS = {"num_hidden_layers": 2}
SAMPLING = {"_best_of_parts", "_best_of_rows", "_edit_rows", "_draw_rows", "_score_rows"}
EXPERTS = {"_point", "_count_choices", "_sort_choices", "_grouped_product", "_sum_choices"}
EACH = {"_norm_rows", "_route", "_count_rows", "_plan", "_pack", "_add", *EXPERTS, *SAMPLING}
"""That every family launches."""
HEADS = {"_place_heads", "attend"}
STATES = {"_convolve", "_prepare", "_pass_on", "_recur", "_norm_gated"}


class Family(NamedTuple):
    """settings: of its checkpoint. own: kernels that it launches, beside those that all do; there
    may be more."""

    settings: Mapping[str, Any]
    own: set[str]
    kind: type[LocalCluster] = GpuTwinCluster


FAMILIES = {
    ("qwen3_moe", "gqa"): Family(TWO_LAYERS, {*HEADS, "join_segments"}),
    ("gpt_oss", "alternating"): Family(TWO_LAYERS, HEADS),
    ("deepseek_v32", "nine_positions"): Family(
        TWO_LAYERS, {"_keep", "_attend", "_score", "_choose"}
    ),
    ("qwen3_next", "wide_tied"): Family({}, {*HEADS, *STATES, "_activate"}),
    ("llama4_text", "maverick"): Family(TWO_LAYERS, {*HEADS, "_product"}, InvariantCluster),
}


def test_between_them_they_launch_every_kernel():
    every = kernels_launched()
    assert len(every) == len(set(every)), "two kernels of one name"
    assert set(every) == EACH.union(*(family.own for family in FAMILIES.values()))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of kernels, as they are launched. What only long steps and contexts take, short ones
    take here: a second launch of the plan, and segments with programs of their own."""
    names, launch = set[str](), HostDevice.launch

    def noted(device: HostDevice, *given: Any, name: str, **rest: Any) -> None:
        names.add(name)
        launch(device, *given, name=name, **rest)

    monkeypatch.setattr(HostDevice, "launch", noted)
    monkeypatch.setattr(plan, "_BLOCK", 8)
    monkeypatch.setattr(segments, "_TILE", 16)
    monkeypatch.setattr(segments, "_LEAST_SEGMENT", 16)
    return names


def served(kind: type[LocalCluster], folder: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    """One prompt in chunks beside the other's tokens, over two expert nodes."""
    options = {"max_model_len": 48, "max_num_batched_tokens": 12, "dtype": "float32"}
    cluster = kind(folder, 1, 1, 2, kernels="reference", **options)
    wishes: list[dict[str, Any]] = [{}, {**BEST_OF_ALL, "logit_bias": {5: 0.0}}]
    for i, (prompt, wish) in enumerate(zip(prompts, wishes, strict=True)):
        cluster.submit(0, replace(greedy_submit(str(i), prompt, NEW_TOKENS), **wish))
    cluster.drain(SECONDS)
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    return [cluster.answers[str(i)].tokens for i in range(len(prompts))]


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_tokens_are_those_of_transformers(tmp_path, family, launched):
    settings, own, kind = FAMILIES[family]
    folder = write_checkpoint(*family, tmp_path, **settings)
    prompts, expected = decisive(oracle(folder), short_prompts, NEW_TOKENS)
    assert served(kind, folder, prompts) == [greedy.tokens for greedy in expected]
    assert launched >= EACH | own
