"""Whole nodes on a device that works late and out of order, over a road of its own."""

from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from megainfer.attention_node.node import AttentionNode
from megainfer.expert_node.node import ExpertNode
from megainfer.messages.requests import Abort
from megainfer.models.registry import load_spec
from megainfer.pipeline import PingPong
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_device import WORK_SECONDS, FakeDevice
from tests.support.forgotten_waits import WAITS, delay_readbacks
from tests.support.happens_before import Race
from tests.support.local_cluster import Answer, LocalCluster, greedy_submit

FAMILIES = [("qwen3_moe", "gqa"), ("deepseek_v3", "groups")]
PROMPTS = [list(range(3, 24)), [7, 8, 9], [30] * 5, [40, 41]]  # the first in two chunks
WISHES: list[dict[str, Any]] = [  # whatever else has to be brought to the device, or from it
    {"prompt_logprobs": 1, "logprobs": 2},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "logprobs": 0},
    {"logit_bias": {5: 4.0}, "bad_words": [[9]], "presence_penalty": 0.5},
    {"temperature": 1.2, "top_k": 3, "min_p": 0.01, "allowed_token_ids": [4, 8, 15, 16, 23, 42]},
]
SMALL: dict[str, Any] = {"max_num_batched_tokens": 16}
NEW_TOKENS = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny operations, for which threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answered(cluster: LocalCluster) -> list[Answer]:
    for i, (prompt, wished) in enumerate(zip(PROMPTS, WISHES, strict=True)):
        submit = greedy_submit(str(i), prompt, NEW_TOKENS + i)
        cluster.submit(i % 2, replace(submit, **wished))
    cluster.drain()
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    return [cluster.answers[str(i)] for i in range(len(PROMPTS))]


def assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    assert [a.tokens for a in answers] == [a.tokens for a in expected]
    for ours, theirs in zip(answers, expected, strict=True):
        scored = zip(
            ours.logprobs + (ours.prompt_logprobs or []),
            theirs.logprobs + (theirs.prompt_logprobs or []),
            strict=True,
        )
        for score, other in scored:
            assert score.rank == other.rank
            assert score.values == pytest.approx(other.values, abs=1e-5)


class Order:
    """What PingPongs were told, as it came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[PingPong, str, int]] = []
        for name in ("dispatched", "sampling", "sampled"):
            monkeypatch.setattr(PingPong, name, self._telling(name))

    def _telling(self, name: str) -> Callable[..., None]:
        tell = getattr(PingPong, name)

        def told(pingpong: PingPong, micro_batch: int, *others: object) -> None:
            self.told.append((pingpong, name, micro_batch))
            tell(pingpong, micro_batch, *others)

        return told

    def overlaps(self) -> int:
        """Layers that ran while another micro-batch of the node awaited its tokens."""
        sampling, count = set[tuple[PingPong, int]](), 0
        for pingpong, name, micro_batch in self.told:
            if name == "dispatched":
                count += any(p is pingpong and mb != micro_batch for p, mb in sampling)
            elif name == "sampling":
                sampling.add((pingpong, micro_batch))
            else:
                sampling.remove((pingpong, micro_batch))
        return count


@pytest.fixture
def slow_readbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    delay_readbacks(monkeypatch)


@pytest.mark.usefixtures("slow_readbacks")
@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_tokens_are_those_of_the_host_and_others_run_while_they_are_found(
    tmp_path, family, monkeypatch
):
    folder = write_checkpoint(*family, tmp_path)
    expected = answered(
        LocalCluster(folder, 2, 2, 2, kernels="reference", dtype="float32", **SMALL)
    )
    order = Order(monkeypatch)
    cluster = FakeCluster(FakeDevice(), folder, 2, 2, 2, **SMALL)
    assert_same(answered(cluster), expected)
    assert order.overlaps()
    cluster.device.synchronize()
    of_attention = seconds(cluster.attention[0], "attention", "combine", "head", "sample")
    for busy in (*of_attention, *seconds(cluster.experts[0], "expert")):
        works = busy / WORK_SECONDS
        assert works > 0.5
        assert works == pytest.approx(round(works), abs=1e-3), "it isn't of the device's clock"


def seconds(node: AttentionNode | ExpertNode, *kinds: str) -> list[float]:
    counters = node.clock.counters()
    return [counters[f"{kind}_seconds"] for kind in kinds]


@pytest.mark.usefixtures("slow_readbacks")
@pytest.mark.parametrize("forgotten", WAITS)
def test_a_wait_that_is_left_out_is_found(tmp_path, monkeypatch, forgotten):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    cluster = FakeCluster(FakeDevice(), folder, 2, 2, 2, **SMALL)
    forgotten(cluster, monkeypatch)
    with pytest.raises(Race):
        answered(cluster)


BLOCKS = 3
"""Of 16 tokens, of which two sequences may begin, and would then need four."""


def crowded(folder: Path) -> dict[str, Any]:
    """Options of nodes whose caches are too small for all that they are asked."""
    room = BLOCKS * 16 * load_spec(folder).kv_bytes_per_token(4)
    return {**SMALL, "max_model_len": 48, "kv_cache_memory": room}


def troubled(cluster: LocalCluster) -> list[Answer]:
    """Sequences are preempted, one is aborted in the middle of its steps, and steps on their way
    are abandoned, twice, for another epoch."""
    prompt = PROMPTS[0]
    # The second takes the last block, and loses it when the first one needs it.
    for name, length, tokens in (("0", 10, 12), ("1", 15, 12), ("doomed", 14, 30)):
        cluster.submit(0, greedy_submit(name, prompt[-length:], tokens))
    (node,) = cluster.attention
    for tokens in (2, 6):
        serve_until(cluster, "0", tokens)
        assert node.scheduler.steps_in_flight
        cluster.enter(changed(cluster.membership, epoch=cluster.membership.epoch + 1))
    serve_until(cluster, "doomed", 1)
    assert node.scheduler.steps_in_flight
    node.hear(Abort("doomed"))
    cluster.drain()
    assert node.scheduler.counters()["preemptions"] > 0
    assert len(cluster.answers["doomed"].tokens) < 30
    assert cluster.free_blocks() == [BLOCKS]
    return [cluster.answers[name] for name in ("0", "1")]


def serve_until(cluster: LocalCluster, name: str, tokens: int) -> None:
    while len(cluster.answers[name].tokens) < tokens:
        cluster.turn()


@pytest.mark.usefixtures("slow_readbacks")
def test_steps_are_abandoned_and_sequences_preempted_in_an_order_too(tmp_path):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    options = crowded(folder)
    host = LocalCluster(folder, 2, 1, 2, kernels="reference", dtype="float32", **options)
    assert_same(troubled(FakeCluster(FakeDevice(), folder, 2, 1, 2, **options)), troubled(host))


@pytest.mark.usefixtures("slow_readbacks")
@pytest.mark.parametrize("forgotten", WAITS)
def test_a_wait_that_is_left_out_in_trouble_is_found(tmp_path, monkeypatch, forgotten):
    folder = write_checkpoint(*FAMILIES[0], tmp_path)
    cluster = FakeCluster(FakeDevice(), folder, 2, 1, 2, **crowded(folder))
    forgotten(cluster, monkeypatch)
    with pytest.raises(Race):
        troubled(cluster)
