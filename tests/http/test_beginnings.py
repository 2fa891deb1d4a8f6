"""Requests are begun by turns of clients, a few in each round of the event loop, and none while its
client rests after what took long."""

import asyncio

from megainfer.sharing.rests import Rests
from server.http.beginnings import A_ROUND, HELD_SECONDS, READ_SECONDS, SMALL_BYTES, Beginnings
from server.http.occupancy import RECENT_SECONDS, Occupancy
from tests.support.engine_talk import run


class Crowd:
    """Requests that write down when they begin, in which round of the loop."""

    def __init__(self) -> None:
        self._beginnings = Beginnings()
        self._rounds = 0
        self.begun: list[tuple[int, str]] = []

    async def count_rounds(self) -> None:
        while True:
            self._rounds += 1
            await asyncio.sleep(0)

    def ask(self, client: str, size: int = 0) -> "asyncio.Task[None]":
        return asyncio.create_task(self._ask(client, size))

    async def _ask(self, client: str, size: int) -> None:
        await self._beginnings.turn(client, size)
        self.begun.append((self._rounds, client))

    def most_in_a_round(self) -> int:
        rounds = [number for number, _ in self.begun]
        return max(rounds.count(number) for number in rounds)


def test_a_crowd_of_one_client_is_begun_a_few_at_a_time_and_another_comes_next() -> None:
    async def check() -> None:
        crowd = Crowd()
        counting = asyncio.create_task(crowd.count_rounds())
        many = [crowd.ask("hostile") for _ in range(100)]
        await asyncio.sleep(0)  # all of them wait before the other one comes
        began = len(crowd.begun)
        await crowd.ask("honest")
        before = [client for _, client in crowd.begun[began:]].index("honest")
        assert before <= 2 * A_ROUND, "those of the round at hand, and of the one that was next"
        await asyncio.gather(*many)
        assert crowd.most_in_a_round() <= A_ROUND
        assert len(crowd.begun) == 101
        counting.cancel()

    run(check())


def test_a_large_request_has_a_round_of_its_own_and_counts_as_many() -> None:
    async def check() -> None:
        crowd = Crowd()
        counting = asyncio.create_task(crowd.count_rounds())
        large = [crowd.ask("hostile", size=20 * SMALL_BYTES) for _ in range(5)]
        await asyncio.sleep(0)
        small = [crowd.ask("honest") for _ in range(12)]
        await asyncio.gather(*large, *small)
        order = [client for _, client in crowd.begun]
        first = order.index("honest")
        assert order[first : first + 12] == ["honest"] * 12
        assert crowd.most_in_a_round() <= A_ROUND
        alone = [number for number, client in crowd.begun if client == "hostile"]
        assert len(set(alone)) == 5
        counting.cancel()

    run(check())


def test_who_leaves_before_its_turn_takes_nobody_elses() -> None:
    async def check() -> None:
        crowd = Crowd()
        many = [crowd.ask("a") for _ in range(40)]
        await asyncio.sleep(0)
        for task in many[10:]:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await crowd.ask("b")
        await crowd.ask("a")
        assert [client for _, client in crowd.begun] == ["a"] * 10 + ["b", "a"]

    run(check())


def test_who_comes_alone_waits_for_nothing() -> None:
    async def check() -> None:
        crowd = Crowd()
        for _ in range(3):
            turn = crowd._ask("a", 0)
            try:
                turn.send(None)
            except StopIteration:
                continue
            raise AssertionError("it waits")

    run(check())


class Time:
    """Which goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def everybody(client: str) -> bool:
    return True


def test_who_held_the_loop_rests_and_who_comes_meanwhile_is_begun_at_once() -> None:
    async def check() -> None:
        time, begun = Time(), list[str]()
        beginnings = Beginnings(Rests(everybody, time))

        async def ask(client: str) -> None:
            await beginnings.turn(client, 100 * SMALL_BYTES)
            begun.append(client)
            beginnings.held(client, 0.05 if client == "hostile" else HELD_SECONDS)

        hostile = [asyncio.create_task(ask("hostile")) for _ in range(3)]
        await asyncio.sleep(0)
        assert begun == ["hostile"]
        for honest in range(1, 6):
            await asyncio.wait_for(ask("honest"), 10)
            assert begun == ["hostile"] + ["honest"] * honest, "what it took wasn't long"
        time.now += 1
        while begun.count("hostile") < 2:
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun[6:] == ["hostile"], "it rests again"
        time.now += 1
        await asyncio.gather(*hostile)

    run(check())


def test_one_client_has_a_third_of_the_time_however_much_it_asks() -> None:
    async def check() -> None:
        time, held = Time(), 0.0
        beginnings = Beginnings(Rests(everybody, time))

        async def ask() -> None:
            nonlocal held
            await beginnings.turn("hostile", 0)
            time.now += 0.02
            held += 0.02
            beginnings.held("hostile", 0.02)

        hostile = [asyncio.create_task(ask()) for _ in range(20)]
        while not all(task.done() for task in hostile):
            await asyncio.sleep(0.0005)  # in which others do something
            time.now += 0.001
        assert time.now >= 3 * (held - A_ROUND * 0.02), "whatever the last of them took"

    run(check())


def test_a_long_body_is_taken_in_by_a_third_of_the_time_at_most() -> None:
    async def check() -> None:
        time = Time()
        rests = Rests(everybody, time)
        beginnings = Beginnings(rests)
        size, pieces = 2**18, 20

        async def read() -> None:
            for _ in range(pieces):
                await beginnings.taken_in("hostile", size)

        reading = asyncio.create_task(read())
        while not reading.done():
            await asyncio.sleep(0)
            time.now += 1e-6
            assert rests.may("another")
        assert time.now >= 2 * pieces * size * READ_SECONDS

    run(check())


def test_somebody_is_there_while_it_is_answered_and_shortly_afterwards() -> None:
    time = Time()
    occupancy = Occupancy(time)
    occupancy.entered("a")
    occupancy.entered("a")
    assert not occupancy.others("a")
    assert occupancy.others("b")
    occupancy.entered("b")
    assert occupancy.others("a")
    occupancy.left("b")
    assert occupancy.others("a"), "it may come again"
    time.now += RECENT_SECONDS
    assert not occupancy.others("a")
    occupancy.left("a")
    occupancy.left("a")
    assert not occupancy.others("a")
    assert occupancy.others("b")
    assert occupancy.in_flight == 0


def test_who_was_there_long_ago_is_forgotten() -> None:
    time = Time()
    occupancy = Occupancy(time)
    for client in range(5000):
        occupancy.entered(str(client))
        occupancy.left(str(client))
        time.now += 0.01
    assert len(occupancy._left_at) <= 1025
