"""Who counts as hung: nobody who only lacks a processor, and nobody who has much to do."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from megainfer.launch.heartbeat import (
    FORGET,
    LEAST_SECONDS,
    PATIENCE,
    SETUP_ROWS,
    UNKNOWN_SECONDS,
    Page,
    Workload,
    begin_to_beat,
)
from megainfer.supervise.vigil import (
    LOOK_SECONDS,
    STOPPED_SECONDS,
    STUCK_SECONDS,
    LinuxProcesses,
    Vigil,
)
from tests.support.m2n_cluster import SECONDS, fork

STEP = LOOK_SECONDS


class Room:
    """Children that beat when told to, seen by a vigil whose clock is told, too."""

    def __init__(self, can_run: bool = False) -> None:
        self.now = 100.0
        self.waited = 0.0
        kernel: Any = SimpleNamespace(can_run=lambda pid: can_run, waited=lambda pid: self.waited)
        self.vigil = Vigil(lambda: self.now, kernel)
        self.child: Any = SimpleNamespace(pid=1, alive=True, page=Page())

    def look(self, seconds: float = STEP, beats: int = 0) -> list[str]:
        self.now += seconds
        self.child.page.beats += beats
        return [reason for _, reason in self.vigil.look([self.child])]


def test_silence_counts_only_after_a_while() -> None:
    room = Room()
    assert room.look(beats=1) == []
    looks = 0
    while not (reasons := room.look()):
        looks += 1
        assert looks * STEP <= STOPPED_SECONDS + STEP
    assert looks * STEP >= STOPPED_SECONDS - STEP
    assert "has not shown any life" in reasons[0]
    assert room.vigil.silence(room.child) > STOPPED_SECONDS
    assert room.look(beats=1) == []


def test_who_could_run_does_not_hang() -> None:
    room = Room(can_run=True)
    assert all(room.look() == [] for _ in range(100))


def test_silence_proves_nothing_while_nobody_looked() -> None:
    room = Room()
    room.look(beats=1)
    assert room.look(10.0) == []  # the supervisor itself had no processor
    assert room.look() == []


def test_the_dead_are_not_looked_at() -> None:
    room = Room()
    room.child.alive = False
    assert all(room.look() == [] for _ in range(100))


def test_work_that_should_long_have_been_done() -> None:
    room = Room()
    room.child.page.due = room.now + 5.0
    while room.now < 105.0 + STUCK_SECONDS - STEP:
        assert room.look(beats=1) == []
    found = [room.look(beats=1) for _ in range(4)][-1]
    assert "should have been done" in found[0]
    room.child.page.due = 0.0
    assert room.look(beats=1) == []


def test_who_waits_for_a_processor_is_not_late() -> None:
    room = Room()
    room.child.page.due = room.now + STEP / 2
    for _ in range(100):
        room.waited += STEP
        assert room.look(beats=1) == []
    while not (reasons := room.look(beats=1)):  # now it has one
        assert room.now < 111 + 2 * STUCK_SECONDS
    assert "should have been done" in reasons[0]


def test_what_is_announced_follows_what_work_takes() -> None:
    page = Page()
    work = Workload(page)
    work.begin(1.0)
    assert page.due == 1.0 + UNKNOWN_SECONDS
    work.begin(1.0 + 8e-3)  # a turn without rows took 8 ms
    a_row = 8e-3 / SETUP_ROWS
    assert page.due == pytest.approx(1.008 + LEAST_SECONDS)
    work.rows(1000)
    assert page.due == pytest.approx(1.008 + PATIENCE * a_row * (1000 + SETUP_ROWS))
    work.begin(1.1)  # those were faster, and are remembered less than what was slow
    work.rows(1000)
    assert page.due == pytest.approx(1.1 + PATIENCE * a_row * FORGET * (1000 + SETUP_ROWS))
    work.rest()
    assert page.due == 0.0
    work.begin(500.0)  # rest is no work
    work.rows(1000)
    assert page.due == pytest.approx(500 + PATIENCE * a_row * FORGET * (1000 + SETUP_ROWS))


@pytest.fixture
def beating() -> Iterator[tuple[Page, int]]:
    page = Page()
    process = fork(beat, page)
    assert process.pid is not None
    try:
        yield page, process.pid
    finally:
        process.kill()
        process.join(SECONDS)


def beat(page: Page) -> None:
    begin_to_beat(page)
    signal.pause()


def test_a_real_process_beats_until_it_is_stopped(beating: tuple[Page, int]) -> None:
    page, pid = beating
    while page.beats < 3:
        os.sched_yield()
    os.kill(pid, signal.SIGSTOP)
    while LinuxProcesses().can_run(pid):
        os.sched_yield()
    beats = page.beats
    vigil = Vigil()
    child: Any = SimpleNamespace(pid=pid, alive=True, page=page)
    while not (found := vigil.look([child])):
        os.sched_yield()
    assert page.beats == beats
    assert found[0][0] is child
    os.kill(pid, signal.SIGCONT)
    while page.beats == beats:
        os.sched_yield()
    vigil.look([child])
    assert vigil.look([child]) == []
