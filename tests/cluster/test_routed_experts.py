"""Which experts tokens chose: what transformers' gates choose, whatever happens to a sequence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megainfer.frontend.outputs import as_array
from megainfer.messages.requests import Submit
from megainfer.messages.routed_experts import joined
from megainfer.topology import Membership
from tests.support.checkpoints import oracle, write_checkpoint
from tests.support.local_cluster import (
    LocalCluster,
    greedy_submit,
    kv_bytes,
    prompts_of,
)

NEW_TOKENS = 12
SHAPES = [
    ("qwen3_moe", "gqa", 2, 2, 2),
    ("mixtral", "gqa", 1, 1, 1),
    ("deepseek_v3", "groups", 1, 3, 2),
    ("gpt_oss", "alternating", 2, 1, 3),
]


def wish(name: str, prompt: Sequence[int], tokens: int = NEW_TOKENS) -> Submit:
    return msgspec.structs.replace(greedy_submit(name, prompt, tokens), routed_experts=True)


def cluster_of(folder: Path, m: int, *nodes: int, **options: Any) -> LocalCluster:
    return LocalCluster(folder, m, *nodes, enable_return_routed_experts=True, **options)


def routed(cluster: LocalCluster, name: str) -> NDArray[np.int16]:
    array = as_array(joined(cluster.answers[name].routed))
    assert array is not None
    return array


def expected(model: Any, tokens: Sequence[int]) -> NDArray[np.int16]:
    """[tokens, layers, top_k]: what transformers' routers give for these tokens."""
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: found.append(out[-1]))
        for name, module in model.named_modules()
        if type(module).__name__.lower().endswith("topkrouter")
    ]
    with torch.no_grad():
        model(torch.tensor([list(tokens)]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found, 1).numpy().astype(np.int16)


def check(cluster: LocalCluster, model: Any, prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts):
        tokens = [*prompt, *cluster.answers[str(number)].tokens]
        told, right = routed(cluster, str(number)), expected(model, tokens[:-1])
        assert told.shape == right.shape
        assert (np.sort(told) == np.sort(right)).all()


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape[0])
def shape(request, tmp_path_factory) -> tuple[Path, int, int, int]:
    family, variant, *numbers = request.param
    m, attention, experts = numbers
    return write_checkpoint(family, variant, tmp_path_factory.mktemp(family)), m, attention, experts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))


def submit(
    cluster: LocalCluster,
    prompts: Sequence[Sequence[int]],
    first: int = 0,
    tokens: int = NEW_TOKENS,
) -> None:
    for number, prompt in enumerate(prompts, first):
        cluster.submit(number % len(cluster.attention), wish(str(number), prompt, tokens))


def test_they_are_those_of_transformers_gates(shape):
    folder, *numbers = shape
    cluster = cluster_of(folder, *numbers, max_num_batched_tokens=16)
    prompts = prompts_of(0)
    submit(cluster, prompts)
    cluster.drain()
    check(cluster, oracle(folder), prompts)


def test_cached_prefixes_and_preempted_sequences_have_theirs(folder):
    prompts = prompts_of(1, (20, 40, 41, 33))
    room = kv_bytes(cluster_of(folder, 1, 1, 1).plan, 16 * 7) * 5 // 4
    cluster = cluster_of(
        folder, 2, 1, 2, max_model_len=96, kv_cache_memory=room, max_num_batched_tokens=16
    )
    submit(cluster, prompts, tokens=40)
    cluster.drain()
    assert cluster.attention[0].scheduler.counters()["preemptions"] > 0
    again = [*prompts, prompts[2]]
    submit(cluster, prompts[2:3], first=4)
    cluster.drain()
    assert cluster.answers["4"].cached_tokens >= 32
    check(cluster, oracle(folder), again)


def test_where_experts_live_makes_no_difference(folder):
    """Steps taken back, and other homes and local ids, in the middle of all."""
    cluster = cluster_of(folder, 2, 1, 3, expert_replicas=3, max_num_batched_tokens=16)
    prompts = prompts_of(2)
    submit(cluster, prompts)
    for _ in range(25):
        cluster.turn()
    before = cluster.membership
    cluster.enter(
        Membership(before.epoch + 1, before.attention, (0, 2), before.placement.without(1))
    )
    cluster.drain()
    check(cluster, oracle(folder), prompts)


def test_each_token_is_told_once_and_only_to_who_asks(folder):
    cluster = cluster_of(folder, 1, 1, 1)
    cluster.submit(0, wish("asks", [5, 6, 7]))
    cluster.submit(0, greedy_submit("doesn't", [5, 6, 7], NEW_TOKENS))
    cluster.drain()
    parts = cluster.answers["asks"].routed
    assert [(part.start, part.stop) for part in parts] == [
        (0, 3),
        *((n, n + 1) for n in range(3, 3 + NEW_TOKENS - 1)),
    ]
    assert cluster.answers["doesn't"].routed == []


def test_who_goes_on_elsewhere_is_told_all_again(folder):
    """As after an attention node's death: what was told before counts no more."""
    cluster = cluster_of(folder, 1, 2, 1)
    cluster.submit(0, wish("whole", [5, 6, 7, 8]))
    cluster.drain()
    whole = cluster.answers["whole"]
    begun = msgspec.structs.replace(wish("rest", [5, 6, 7, 8]), output=whole.tokens[:4])
    cluster.submit(1, begun)
    cluster.drain()
    together = joined([*whole.routed[:4], *cluster.answers["rest"].routed])
    assert together == joined(whole.routed)


def test_a_gap_is_an_error(folder):
    cluster = cluster_of(folder, 1, 1, 1)
    cluster.submit(0, wish("a", [5, 6, 7]))
    cluster.drain()
    parts = cluster.answers["a"].routed
    with pytest.raises(ValueError, match=r"from 4 on, .* can't follow those of 0 to 3"):
        joined([parts[0], *parts[2:]])
