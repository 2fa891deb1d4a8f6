"""The reference on a device that works late and out of order, and what that device reports."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput, build_batch
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.happens_before import Race
from tests.support.node_pair import CLOCK, FLOAT32, Pair, blocks_of, load_pair, open_pair

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v3", "groups"),  # latent attention
    ("qwen3_next", "grouped"),  # recurrent states
    ("gpt_oss", "alternating"),  # sinks, windows, biases
]
PROMPTS = [list(range(3, 40)), [7, 7, 150, 9], [20]]


def steps() -> list[list[ChunkInput]]:
    """A prompt and a first token, the rest of it beside a decode, then a token of each."""

    def chunk(sequence: int, start: int, stop: int) -> ChunkInput:
        tokens = (PROMPTS[sequence] + [11, 12, 13])[start:stop]
        return ChunkInput(tokens, start, blocks_of(sequence), True, sequence)

    return [
        [chunk(0, 0, 20), chunk(2, 0, 1)],
        [chunk(2, 1, 2), chunk(1, 0, 4), chunk(0, 20, 37)],
        [chunk(0, 37, 38), chunk(1, 4, 5), chunk(2, 2, 3)],
    ]


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_the_reference_computes_the_same_on_a_device(tmp_path, family):
    folder, nodes = write_checkpoint(*family, tmp_path), 3
    direct, device = load_pair(folder, nodes, FLOAT32, "reference"), FakeDevice()
    with TorchWork(device):
        pair = open_pair(folder, nodes, FakeBackend(device))
        for chunks in steps():
            logits = device.read_back(pair.step(chunks)).take()
            torch.testing.assert_close(logits, direct.step(chunks), atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(pair.experts, direct.experts, strict=True):
            assert ours.counters()["expert_tokens"] == theirs.counters()["expert_tokens"]
    assert device.now > 0


class TwoStreams:
    """Attention on one stream, experts on another, and an event each way between them.

    forgotten: which of the two nobody waits for.
    """

    def __init__(self, pair: Pair, device: FakeDevice, forgotten: str | None) -> None:
        self._pair, self._device, self._forgotten = pair, device, forgotten
        self._attention, self._experts = device.stream(), device.stream()

    def step(self, chunks: list[ChunkInput]) -> Tensor:
        pair, device = self._pair, self._device
        with device.on(self._attention):
            batch = build_batch(chunks, device)
            x = pair.attention.embed(batch)
            point = pair.attention.advance(x, 0, batch, pair.kv, CLOCK)
            while point is not None:
                routed = device.event()
                routed.record()
                with device.on(self._experts):
                    if self._forgotten != "dispatch":
                        routed.wait()
                    outs = [pair.computed(node, point) for node in range(len(pair.experts))]
                    replied = device.event()
                    replied.record()
                if self._forgotten != "reply":
                    replied.wait()
                for part, out in zip(point.parts, outs, strict=True):
                    x.index_add_(0, part.rows, out)
                point = pair.attention.advance(x, point.layer + 1, batch, pair.kv, CLOCK)
            return device.read_back(pair.attention.logits(x, batch.sample_rows)).take()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("seed", range(2))
def test_streams_that_wait_for_each_other_compute_the_same(folder, seed):
    direct, device = load_pair(folder, 2, FLOAT32, "reference"), FakeDevice(seed)
    with TorchWork(device):
        pair = open_pair(folder, 2, FakeBackend(device))
        device.synchronize()
        streams = TwoStreams(pair, device, None)
        for chunks in steps():
            found = streams.step(chunks)
            torch.testing.assert_close(found, direct.step(chunks), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("forgotten", "message"),
    [("dispatch", r"stream 2 reads what .* on stream 1 wrote"), ("reply", "stream 1 .* stream 2")],
)
def test_a_wait_that_was_forgotten_is_reported(folder, forgotten, message):
    device = FakeDevice()
    with TorchWork(device):
        pair = open_pair(folder, 2, FakeBackend(device))
        device.synchronize()
        with pytest.raises(Race, match=message):
            TwoStreams(pair, device, forgotten).step(steps()[0])


def test_weights_that_nobody_waited_for_are_reported(folder):
    device = FakeDevice()
    with TorchWork(device):
        pair = open_pair(folder, 2, FakeBackend(device))
        with pytest.raises(Race, match="upload on stream 0"):
            TwoStreams(pair, device, None).step(steps()[0])


def test_a_host_that_asks_a_device_is_reported():
    device = FakeDevice()
    with TorchWork(device):
        x = device.upload(torch.arange(6))
        for ask in (lambda: int(x.sum()), lambda: x.nonzero(), lambda: torch.bincount(x)):
            with pytest.raises(Race, match="the host asks the device"):
                ask()
        doubled = x * 2
        with pytest.raises(Race, match="a look on the host reads"):
            device.host_reads(doubled)
        assert device.read_back(doubled).take().tolist() == [0, 2, 4, 6, 8, 10]
        device.host_reads(doubled)


def test_work_is_late_and_takes_its_time():
    device = FakeDevice()
    began, ended = device.event(timed=True), device.event(timed=True)
    values = device.empty((2,), torch.float32)
    began.record()
    device.launch(lambda: values.fill_(3), [], [values], seconds=2.0)
    ended.record()
    assert values.isnan().all()
    while not ended.done():
        pass
    assert values.tolist() == [3, 3]
    assert ended.seconds_since(began) == device.now == 2.0
