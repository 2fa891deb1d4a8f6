"""Who has held something up for others rests in proportion, and nobody else waits for that."""

import asyncio
from types import coroutine
from typing import Any

import pytest

from megainfer.sharing.rests import LONGEST_REST_SECONDS, REST, Rests
from megainfer.sharing.turns import Turns


class Time:
    """Which goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def everybody(client: str) -> bool:
    return True


def test_a_rest_is_as_long_as_what_came_before_it_and_adds_up() -> None:
    time = Time()
    rests = Rests(everybody, time)
    rests.note("a", 0.5)
    assert rests.left("a") == pytest.approx(REST * 0.5)
    assert not rests.may("a")
    assert rests.may("b")
    time.now += 0.5
    rests.note("a", 0.5)  # which it was during that time, and so hasn't rested yet
    assert rests.left("a") == pytest.approx(REST)
    assert rests.soonest(["a"]) == pytest.approx(REST)
    assert rests.soonest(["a", "b"]) == 0
    time.now += REST
    assert rests.may("a")
    assert rests.left("a") == 0


def test_no_rest_is_without_end() -> None:
    rests = Rests(everybody, Time())
    for _ in range(1000):
        rests.note("a", 1.0)
    assert rests.left("a") == LONGEST_REST_SECONDS


def test_who_is_alone_holds_nobody_up() -> None:
    others = {"a"}
    rests = Rests(lambda client: bool(others - {client}), Time())
    rests.note("a", 1.0)
    assert rests.may("a")
    others.add("b")
    rests.note("a", 1.0)
    assert not rests.may("a")


def test_rests_that_are_over_are_forgotten() -> None:
    time = Time()
    rests = Rests(everybody, time)
    for client in range(1000):
        rests.note(str(client), 0.001)
        time.now += 1
    assert len(rests._until) == 1


def test_a_turn_passes_over_who_rests_and_comes_to_it_afterwards() -> None:
    async def work() -> list[str]:
        time, order = Time(), list[str]()
        rests = Rests(everybody, time)
        turns = Turns(1, 8, "tasks", rests)

        async def one(name: str) -> None:
            async with turns.turn(name[0]):
                order.append(name)

        async with turns.turn("a"):
            waiting = [asyncio.create_task(one(name)) for name in ("a1", "a2", "b1")]
            await asyncio.sleep(0)
            rests.note("a", 0.005)
        await waiting[2]
        assert order == ["b1"]
        await asyncio.wait_for(one("c1"), 10)  # the place isn't kept for who rests
        assert order == ["b1", "c1"]
        assert not waiting[0].done()
        assert len(turns) == 2
        time.now += 1
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        async with turns.turn("a"):  # nothing was lost
            pass
        return order

    assert asyncio.run(work()) == ["b1", "c1", "a1", "a2"]


def test_who_rests_may_leave_while_it_waits() -> None:
    async def work() -> None:
        time = Time()
        rests = Rests(everybody, time)
        turns = Turns(1, 8, "tasks", rests)
        rests.note("a", 0.005)

        async def one() -> None:
            async with turns.turn("a"):
                pass

        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(turns) == 0
        time.now += 1
        await asyncio.wait_for(one(), 10)

    asyncio.run(work())


def test_each_step_is_told_of_with_its_own_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.http import held_time

    spent = Time()
    monkeypatch.setattr(held_time, "thread_time", spent)
    told: list[float] = []

    async def work(pending: "asyncio.Future[None]") -> str:
        spent.now += 1
        await asyncio.sleep(0)
        spent.now += 2
        try:
            await pending
        except asyncio.CancelledError:
            spent.now += 3
            await asyncio.sleep(0)
            spent.now += 4
        return "done"

    async def check() -> str:
        loop = asyncio.get_running_loop()
        pending = loop.create_future()
        loop.call_later(0.001, pending.cancel)
        return await held_time.told_of_steps(work(pending), told.append)

    assert asyncio.run(check()) == "done"
    assert told == [1, 2, 3, 4]


def test_what_a_step_raises_is_raised_and_the_step_told_of() -> None:
    from server.http.held_time import told_of_steps

    told: list[float] = []
    closed: list[bool] = []

    async def fails() -> None:
        raise KeyError("it")

    @coroutine
    def forever() -> Any:
        try:
            while True:
                yield
        finally:
            closed.append(True)

    async def waits() -> None:
        await forever()

    async def steps() -> None:
        await told_of_steps(fails(), told.append)

    with pytest.raises(KeyError):
        asyncio.run(steps())
    assert len(told) == 1
    stepped = told_of_steps(waits(), told.append)
    stepped.send(None)
    stepped.close()
    assert closed == [True]
