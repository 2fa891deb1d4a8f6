"""What whole nodes on a device tell of its time: a track beside their hosts', and nobody waits."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NoReturn

import pytest
import torch

from megainfer.attention_node.node import AttentionNode
from megainfer.device.measuring import EventMarks
from megainfer.expert_node.node import ExpertNode
from megainfer.instruments.stage_clock import Span, StageClock
from megainfer.instruments.trace_events import trace_document
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_device import WORK_SECONDS, FakeDevice
from tests.support.fake_stream import FakeEvent
from tests.support.forgotten_waits import delay_readbacks
from tests.support.local_cluster import greedy_submit

PROMPTS = [list(range(3, 21)), [7, 8, 9]]  # the first in two chunks
SMALL: dict[str, Any] = {"max_num_batched_tokens": 16}
OF_HOST = {"schedule"}


class TimedEvent(FakeEvent):
    """One that tells the time may be looked at, and nothing else."""

    def wait(self) -> NoReturn:
        raise AssertionError("a stream waits for an event that tells the time")

    def synchronize(self) -> NoReturn:
        raise AssertionError("the host waits for an event that tells the time")

    def seconds_since(self, earlier: FakeEvent) -> float:
        assert self._seen(), "CUDA would fail, or wait"
        assert earlier._seen()
        return super().seconds_since(earlier)


class TimedDevice(FakeDevice):
    """timed: how many such events were made."""

    timed = 0

    def event(self, timed: bool = False) -> FakeEvent:
        self.timed += timed
        return TimedEvent(self) if timed else FakeEvent(self)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny operations
    folder = write_checkpoint("qwen2_moe", "dense_between", tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patched:
        delay_readbacks(patched)  # or tokens would be waited for by chance
        yield FakeCluster(TimedDevice(), folder, 2, 1, 2, **SMALL)
    torch.set_num_threads(before)


def traced(cluster: FakeCluster, marks: int) -> list[list[int]]:
    """Tokens of an instance whose nodes keep spans, each with so many marks, by the device's own
    clock."""
    device = cluster.device
    assert isinstance(device, TimedDevice)
    cluster.attention[0].scheduler.drop_cache()
    for node in (*cluster.attention, *cluster.experts):
        node.clock = StageClock(10_000, EventMarks(device, marks), lambda: device.now)
    before = device.timed
    for i, prompt in enumerate(PROMPTS):
        cluster.submit(0, greedy_submit(str(i), prompt, 2))
    cluster.drain()
    assert device.timed == before, "events are made at the start, and no more of them"
    device.synchronize()
    return [answer.tokens for answer in cluster.answers.values()]


def tracks(node: AttentionNode | ExpertNode) -> tuple[list[Span], list[Span]]:
    """Of the host, without what is its own work, and of the device."""
    spans = node.clock.take_spans()
    given = [span for span in spans if not span.on_device and span.kind not in OF_HOST]
    return given, [span for span in spans if span.on_device]


def test_a_track_shows_when_the_device_did_what_it_was_given(idle: FakeCluster) -> None:
    cluster = idle
    traced(cluster, marks=1024)
    for node, kinds in (
        (cluster.attention[0], "embed attention dispatch shared combine head sample"),
        (cluster.experts[0], "expert reply"),
        (cluster.experts[1], "expert reply"),
    ):
        given, done = tracks(node)
        counters = node.clock.counters()
        assert [span[:3] for span in done] == [span[:3] for span in given]
        assert {span.kind for span in done} == {*kinds.split()}
        assert all(one.end <= other.start + 1e-12 for one, other in pairwise(done))
        for own, host in zip(done, given, strict=True):
            assert own.start >= host.start - 1e-9, "it was done before it was given"
            works = (own.end - own.start) / WORK_SECONDS
            assert works == pytest.approx(round(works), abs=1e-3), "it isn't of the device's clock"
        for kind in kinds.split():
            seconds = sum(span.end - span.start for span in done if span.kind == kind)
            assert counters[f"{kind}_seconds"] == pytest.approx(seconds)
            assert counters[f"{kind}_count"] == sum(span.kind == kind for span in done)
        assert counters["attention_seconds" if "attention" in kinds else "expert_seconds"] > 0
        assert counters["device_spans_missed"] == 0


def test_with_few_marks_spans_are_missing_and_counted_and_tokens_are_the_same(
    idle: FakeCluster,
) -> None:
    whole = [answer.tokens for answer in idle.answers.values()]
    assert traced(idle, marks=4) == whole or not whole
    missed = 0
    for node in (*idle.attention, *idle.experts):
        given, done = tracks(node)
        assert node.clock.counters()["device_spans_missed"] == len(given) - len(done)
        missed += len(given) - len(done)
    assert missed > 0


def test_the_trace_of_a_node_on_a_device_has_both_tracks() -> None:
    run = {
        "attention node 0": [
            Span("attention", 0, 3, 1.0, 1.5),
            Span("attention", 0, 3, 1.25, 3.0, on_device=True),
        ],
        "expert node 0": [Span("expert", 0, 3, 2.0, 2.25)],
    }
    events = trace_document({"m": run})["traceEvents"]
    threads = [
        (e["pid"], e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"
    ]
    assert threads == [(0, 0, "host"), (0, 1, "device")], "what has no device has no track of it"
    pieces = [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert pieces == [(0, 0, 0, 0.5e6), (0, 1, 0.25e6, 1.75e6), (1, 0, 1e6, 0.25e6)]
