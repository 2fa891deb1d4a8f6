"""One role on a device that works late, the other on the host: tokens are the host's, and what the
device has yet to find is neither waited for nor used."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megainfer.device import HOST
from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import Arrival, Dispatch, ExpertPort, Handle, Part, Rest
from megainfer.m2n.staged import (
    StagedAttentionPort,
    StagedExpertPort,
    attention_port_for,
    expert_port_for,
)
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_backend import TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.fake_stream import FakeReadback
from tests.support.happens_before import Race
from tests.support.local_cluster import LocalCluster, greedy_submit
from tests.support.m2n_cluster import padded
from tests.support.staged_cluster import StagedCluster

HIDDEN, TOP_K, CAPACITY = 8, 2, 6
PROMPTS = [list(range(3, 24)), [7, 8, 9], [30] * 5, [40, 41]]  # the first in two chunks
LOOKS = 10_000  # before a test gives up


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny operations, for which threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nobody_waits_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes what was read back, and has not seen that it is there, is told; but for tokens
    counted for the books."""
    take = FakeReadback.take

    def take_done(readback: FakeReadback) -> Tensor:
        if not readback._event._seen():
            raise Race("the host takes what the device has yet to find")
        return take(readback)

    monkeypatch.setattr(FakeReadback, "take", take_done)


def answered(cluster: LocalCluster) -> list[list[int]]:
    for i, prompt in enumerate(PROMPTS):
        cluster.submit(i % 2, greedy_submit(str(i), prompt, 2 + i))
    cluster.drain()
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    return [cluster.answers[str(i)].tokens for i in range(len(PROMPTS))]


@pytest.mark.parametrize("late", ["attention", "experts", "both"])
def test_tokens_are_those_of_the_host(tmp_path, late):
    folder, small = write_checkpoint("qwen3_moe", "gqa", tmp_path), {"max_num_batched_tokens": 16}
    options = {"kernels": "reference", "dtype": "float32", **small}
    expected = answered(LocalCluster(folder, 2, 2, 2, **options))
    attention = HOST if late == "experts" else FakeDevice(1)
    experts = HOST if late == "attention" else FakeDevice(2)
    cluster = StagedCluster(attention, experts, folder, 2, 2, 2, **small)
    assert answered(cluster) == expected
    sent = [unit.port.counters()["messages_sent"] for unit in cluster.members()]
    assert all(sent)


class Ends:
    """An attention node on a late device and a host's expert node, or the reverse."""

    def __init__(self, micro_batches: int = 2, experts: int = 1) -> None:
        geometry = Geometry(1, experts, micro_batches, CAPACITY, HIDDEN, TOP_K, "float32")
        hub = LocalHub(geometry)
        self.device = FakeDevice()
        self.host_attention = hub.attention_port(0)
        self.attention = StagedAttentionPort(self.host_attention, self.device)
        self.experts = [hub.expert_port(node) for node in range(experts)]
        self.late_expert = StagedExpertPort(self.experts[0], self.device)

    def dispatch(self, micro_batch: int, *counts: int) -> tuple[Handle, Tensor]:
        """Of so many rows to each expert node, as only the device knows."""
        hidden = torch.randn(CAPACITY, HIDDEN)
        parts = [self._part(count) for count in counts]
        return self.attention.dispatch(micro_batch, 3, self.device.upload(hidden), parts), hidden

    def _part(self, count: int) -> Part:
        choices = torch.arange(count * TOP_K).view(count, TOP_K)
        rows = torch.arange(CAPACITY - count, CAPACITY)
        part = padded(Part(rows, choices.to(torch.int32), choices + 0.5), CAPACITY)
        return Part(*(self.device.upload(tensor) for tensor in part if tensor is not None))

    def arrivals(self, count: int) -> list[Arrival]:
        arrivals = list[Arrival]()
        for _ in range(LOOKS):
            arrivals += self.attention.poll()
            if len(arrivals) >= count:
                return arrivals
        raise AssertionError(f"only {arrivals} came")

    def messages(self, port: ExpertPort) -> list[Dispatch]:
        """What has come, once the device has been looked at for long enough."""
        for _ in range(LOOKS):
            self.attention.poll()
            if messages := port.receive():
                return [message for message in messages if isinstance(message, Dispatch)]
        raise AssertionError("nothing came")


def test_only_rows_that_count_are_sent_and_nodes_without_any_are_not_waited_for():
    ends = Ends(experts=3)
    with TorchWork(ends.device):
        handle, hidden = ends.dispatch(1, 2, 0, 6)
        assert handle.awaiting == {0, 1, 2}, "no host knows better yet"
        (message,) = ends.messages(ends.experts[0])
        assert torch.equal(message.hidden, hidden[4:])
        assert message.local_ids.tolist() == [[0, 1], [2, 3]]
        assert message.weights.tolist() == [[0.5, 1.5], [2.5, 3.5]]
        (empty,) = ends.messages(ends.experts[1])
        assert empty.num_rows == 0
        (whole,) = ends.messages(ends.experts[2])
        for port, due in ((ends.experts[0], message), (ends.experts[2], whole)):
            port.reply_buffer(due).copy_(due.hidden * 2)
            port.reply(due)
        assert ends.arrivals(2)
        out = ends.device.upload(torch.ones(CAPACITY, HIDDEN))
        ends.attention.combine(handle, out)
        expected = 1 + 2 * hidden
        expected[4:] += 2 * hidden[4:]
        ends.device.synchronize()
    torch.testing.assert_close(out, expected)


def test_what_nobody_knows_yet_keeps_the_node_from_sleeping_long():
    ends, asked = Ends(), list[float]()
    ends.host_attention.wait = lambda timeout, fds=(): asked.append(timeout)  # type: ignore[method-assign,misc]
    with TorchWork(ends.device):
        ends.attention.wait(1.0)
        ends.dispatch(0, 3)
        ends.attention.wait(1.0)
        ends.messages(ends.experts[0])
        ends.attention.wait(1.0)
    assert asked == [1.0, 20e-6, 1.0]


def test_a_micro_batch_is_free_when_all_have_answered():
    ends = Ends()
    with TorchWork(ends.device):
        handle, _ = ends.dispatch(0, 3)
        for refused in (lambda: ends.dispatch(0, 3), lambda: ends.attention.rest(0)):
            with pytest.raises(ProtocolError, match="micro-batch 0 still waits for expert nodes"):
                refused()
        out = ends.device.upload(torch.zeros(CAPACITY, HIDDEN))
        with pytest.raises(ProtocolError, match="has yet to be sent"):
            ends.attention.combine(handle, out)
        (message,) = ends.messages(ends.experts[0])
        ends.experts[0].reply_error(message, "too hot")
        assert ends.arrivals(1) == [Arrival(0, 3, 0, "too hot")]
        with pytest.raises(ProtocolError, match=r"\[0\] have failed"):
            ends.attention.combine(handle, out)
        ends.attention.rest(0)
        assert isinstance(ends.experts[0].receive()[0], Rest)
        again, _ = ends.dispatch(0, 1)
        with pytest.raises(ProtocolError, match="not in flight"):
            ends.attention.combine(handle, out)
        assert again.awaiting == {0}


def test_a_new_epoch_forgets_what_was_not_sent():
    ends = Ends()
    with TorchWork(ends.device):
        ends.dispatch(0, 3)
        ends.attention.set_epoch(1)
        ends.experts[0].set_epoch(1)
        ends.device.synchronize()
        assert ends.attention.poll() == []
        assert ends.experts[0].receive() == []
        ends.dispatch(0, 2)
        ends.attention.set_epoch(1)  # the one that it is in: nothing changes
        (message,) = ends.messages(ends.experts[0])
    assert message.num_rows == 2


def send(ends: Ends, rows: int) -> tuple[Handle, Tensor]:
    hidden, choices = torch.randn(rows, HIDDEN), torch.ones(rows, TOP_K)
    part = Part(torch.arange(rows), choices.to(torch.int32), choices)
    return ends.host_attention.dispatch(0, 3, hidden, [part]), hidden


def test_experts_on_a_device_answer_when_it_has_filled_the_reply():
    ends = Ends()
    with TorchWork(ends.device):
        handle, hidden = send(ends, 4)
        (message,) = ends.late_expert.receive()
        assert isinstance(message, Dispatch)
        out = ends.late_expert.reply_buffer(message)
        torch.mul(message.hidden, 3, out=out)
        ends.late_expert.reply(message)
        for _ in range(LOOKS):
            ends.late_expert.receive()
            if ends.host_attention.poll():
                break
        sums = torch.zeros(4, HIDDEN)
        ends.host_attention.combine(handle, sums)
    assert torch.equal(sums, 3 * hidden)


def test_what_a_device_answers_to_an_ended_epoch_is_dropped():
    ends = Ends()
    with TorchWork(ends.device):
        send(ends, 4)
        (message,) = ends.late_expert.receive()
        assert isinstance(message, Dispatch)
        ends.late_expert.reply_buffer(message).fill_(1)
        ends.host_attention.set_epoch(1)
        ends.late_expert.set_epoch(1)
        handle, _ = send(ends, 2)
        ends.late_expert.reply(message)
        ends.device.synchronize()
        (newer,) = ends.late_expert.receive()
        assert isinstance(newer, Dispatch)
        assert ends.late_expert.counters()["dropped"] == 1
        assert ends.host_attention.poll() == []
        ends.late_expert.reply_error(newer, "no")
        assert ends.host_attention.poll() == [Arrival(0, 3, 0, "no")]
    assert handle.awaiting == {0}


def test_a_port_of_the_device_itself_is_taken_as_it_is():
    ends = Ends()
    assert attention_port_for(HOST, ends.host_attention) is ends.host_attention
    assert expert_port_for(HOST, ends.experts[0]) is ends.experts[0]
    assert isinstance(attention_port_for(ends.device, ends.host_attention), StagedAttentionPort)
    assert isinstance(expert_port_for(ends.device, ends.experts[0]), StagedExpertPort)
