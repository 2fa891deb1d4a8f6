"""The node loop on a device that works late and out of order, over a road between streams."""

import pytest
import torch

from tests.support.checkpoints import write_checkpoint
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_device import FakeDevice
from tests.support.fake_stream import FakeEvent
from tests.support.happens_before import Race
from tests.support.local_cluster import LocalCluster, answers_of, submit_all

PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [9]]
TOKENS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Thousands of tiny operations, for which threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("fake"))


def answers(cluster: LocalCluster) -> list[list[int]]:
    submit_all(cluster, PROMPTS, TOKENS)
    cluster.drain()
    assert [answer.failure for answer in cluster.answers.values()] == [None] * len(PROMPTS)
    return answers_of(cluster, PROMPTS)


@pytest.mark.parametrize(("m", "attention", "experts"), [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_tokens_are_those_of_the_host(folder, m, attention, experts):
    options = {"kernels": "reference", "dtype": "float32"}
    expected = answers(LocalCluster(folder, m, attention, experts, **options))
    device = FakeDevice(seed=m)
    assert answers(FakeCluster(device, folder, m, attention, experts)) == expected
    assert device.now > 0


def test_a_missing_wait_is_caught(folder, monkeypatch):
    cluster = FakeCluster(FakeDevice(), folder, 2, 1, 2)
    monkeypatch.setattr(FakeEvent, "wait", lambda event: None)
    with pytest.raises(Race, match="on stream 2 reads what pack on stream 1 wrote"):
        answers(cluster)
