"""Times on a machine that others may use as well."""

from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from time import perf_counter
from typing import TypeVar

Key = TypeVar("Key")
Work = Callable[[], object]

ROUNDS = 7
WARM_ROUNDS = 1


def undisturbed(works: Mapping[Key, Work], rounds: int = ROUNDS) -> dict[Key, float]:
    """Seconds of each: the lower quartile of its rounds, since what disturbs a machine only ever
    adds. Rounds go through all of them in turn, so that whatever slows the machine for a while
    slows one round of each and not all rounds of one."""
    taken: dict[Key, list[float]] = {key: [] for key in works}
    for number in range(WARM_ROUNDS + rounds):
        for key, work in works.items():
            seconds = seconds_of(work)
            if number >= WARM_ROUNDS:
                taken[key].append(seconds)
    return {key: quantiles(own, n=4, method="inclusive")[0] for key, own in taken.items()}


def seconds_of(work: Work) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def in_turn(works: Sequence[Work]) -> Work:
    """Each call does the next of them, so that none finds its data in a cache."""
    calls = 0

    def work() -> None:
        nonlocal calls
        works[calls % len(works)]()
        calls += 1

    return work
