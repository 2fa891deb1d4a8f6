"""The control link: whole messages of any length, and what a full or a dead end does."""

import os

import pytest

from megainfer.errors import NodeDied
from megainfer.launch.control import link_pair
from megainfer.messages.from_child import Stats


def stats_of(length: int) -> Stats:
    return Stats(None, {"expert-0": {"text": "x" * length}})


@pytest.mark.parametrize("length", [1, 60_000, 70_000, 5_000_000])
def test_a_message_of_any_length_comes_whole(length):
    ours, theirs = link_pair()
    theirs.send(stats_of(length))
    assert theirs.offer(stats_of(length + 1))
    assert ours.receive(1.0) == stats_of(length)
    assert ours.receive(1.0) == stats_of(length + 1)
    ours.close()
    theirs.close()


def test_long_messages_leave_no_file_open():
    ours, theirs = link_pair()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        theirs.send(stats_of(100_000))
        ours.receive(1.0)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


@pytest.mark.parametrize("length", [1000, 100_000])
def test_one_who_reads_nothing_is_offered_no_more_than_fits(length):
    ours, theirs = link_pair()
    offered = 0
    while theirs.offer(stats_of(length)):
        offered += 1
        assert offered < 5000
    for _ in range(offered):
        assert ours.receive(0.0) == stats_of(length)
    assert ours.receive(0.0) is None
    ours.close()
    theirs.close()


def test_a_long_message_to_one_that_is_gone_is_told():
    ours, theirs = link_pair()
    ours.close()
    with pytest.raises(NodeDied, match="gone"):
        theirs.send(stats_of(100_000))
    theirs.close()
