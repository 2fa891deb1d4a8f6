"""Requests are begun by turns of clients, a few in each round of the event loop."""

import asyncio

from server.http.beginnings import A_ROUND, SMALL_BYTES, Beginnings
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
