"""How a node waits for what was announced: nobody rings when a device publishes."""

import os
from collections.abc import Callable, Iterator

import pytest

from megainfer.m2n.host.region import Bell
from megainfer.m2n.ipc.sleeper import DeviceSleeper
from megainfer.m2n.slotted.sleeper import Watched

FOR_EVER = 1000.0
LOOKS = 20
NAP, SHORT_NAP = 1e-3, 2e-5


class Slots:
    """What a sleeper asks. The message that was announced is published at the `published_at`-th
    question after that; None: never."""

    def __init__(self, announced: bool, published_at: int | None = None) -> None:
        self.announced, self.published_at = announced, published_at
        self.asked = 0

    def news(self) -> bool:
        self.asked += 1
        return self.announced and self.published_at is not None and self.asked > self.published_at

    def awaits(self) -> bool:
        return self.announced and not self.news()


@pytest.fixture
def bell() -> Iterator[Bell]:
    made = Bell.create()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def watched(bell: Bell, *others: int) -> Watched:
    return tuple((descriptor, 1) for descriptor in (bell.fileno(), *others))


def sleeper(
    slots: Slots, bell: Bell, spin_seconds: float, nap_seconds: float = NAP
) -> DeviceSleeper:
    return DeviceSleeper(slots.news, slots.awaits, bell, spin_seconds, nap_seconds)


@pytest.mark.parametrize("nap_seconds", [NAP, SHORT_NAP])
@pytest.mark.parametrize("spin_seconds", [0.0, 1e-4, FOR_EVER], ids=["naps", "both", "spins"])
def test_it_finds_what_is_published_without_a_ring(
    bell: Bell, spin_seconds: float, nap_seconds: float
) -> None:
    slots = Slots(announced=True, published_at=LOOKS)
    waiting = sleeper(slots, bell, spin_seconds, nap_seconds)
    assert not waiting.sleep(FOR_EVER, watched(bell))
    assert slots.news()


def test_what_is_published_between_the_callers_look_and_its_sleep_is_not_slept_over(
    bell: Bell,
) -> None:
    """Its ring was heard by then, and nothing is awaited any more."""
    slots = Slots(announced=True, published_at=0)
    assert not sleeper(slots, bell, 0.0).sleep(FOR_EVER, watched(bell))


def test_a_ring_ends_a_sleep_so_that_the_caller_looks(bell: Bell) -> None:
    slots = Slots(announced=False)
    bell.ring()
    assert sleeper(slots, bell, 0.0).sleep(FOR_EVER, watched(bell)) == [bell.fileno()]
    assert sleeper(slots, bell, 0.0).sleep(0.0, watched(bell)) == []  # silent now


@pytest.mark.parametrize(("spin_seconds", "nap_seconds"), [(0.0, NAP), (0, SHORT_NAP), (1e-4, NAP)])
def test_a_descriptor_ends_the_wait_for_a_device(
    bell: Bell, pipe: tuple[int, int], spin_seconds: float, nap_seconds: float
) -> None:
    reader, writer = pipe
    slots = Slots(announced=True)

    def written_meanwhile(ask: Callable[[], bool]) -> bool:
        if slots.asked == LOOKS:
            os.write(writer, b"x")
        return ask()

    waiting = DeviceSleeper(
        lambda: written_meanwhile(slots.news),
        lambda: written_meanwhile(slots.awaits),
        bell,
        spin_seconds,
        nap_seconds,
    )
    assert waiting.sleep(FOR_EVER, watched(bell, reader)) == [reader]


def test_a_device_that_never_publishes_is_awaited_until_the_deadline(bell: Bell) -> None:
    slots = Slots(announced=True)
    assert not sleeper(slots, bell, 1e-4).sleep(5e-3, watched(bell))
    assert slots.asked
