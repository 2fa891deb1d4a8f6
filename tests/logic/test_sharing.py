"""Shares and turns: nobody holds all, nobody waits for all others, and nothing is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import Overloaded, RequestError
from megainfer.sharing.fair_queue import FairQueue
from megainfer.sharing.shares import Shares
from megainfer.sharing.turns import Turns


def test_one_client_leaves_half_of_what_there_is() -> None:
    shares = Shares({"sequences": 16}, share=0.5)
    shares.take("a", {"sequences": 8})
    with pytest.raises(Overloaded, match="you have 8 sequences, 8 of 16 are taken"):
        shares.take("a", {"sequences": 1})
    shares.take("b", {"sequences": 4})
    with pytest.raises(Overloaded):
        shares.take("b", {"sequences": 1})
    shares.take("c", {"sequences": 2})
    shares.give_back("a", {"sequences": 8})
    shares.take("b", {"sequences": 3})
    assert (shares.held("sequences"), shares.held("sequences", "b")) == (9, 7)


def test_what_can_never_be_had_is_the_requests_fault() -> None:
    shares = Shares({"bytes": 100}, share=0.5)
    with pytest.raises(RequestError, match="takes 51 bytes, and one client may have 50"):
        shares.take("a", {"bytes": 51, "sequences": 1})
    assert shares.held("sequences") == 0, "nothing of it was taken"
    shares.take("a", {"bytes": 50, "others": 10**9})


steps = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40), st.booleans()))


@given(steps, st.sampled_from([0.25, 0.5, 1.0]))
def test_shares_add_up_and_leave_some(taken: list[tuple[str, int, bool]], share: float) -> None:
    shares = Shares({"x": 100}, share)
    for client, amount, back in taken:
        if back:
            shares.give_back(client, {"x": min(amount, shares.held("x", client))})
        else:
            before = shares.held("x", client)
            try:
                shares.take(client, {"x": amount})
            except (Overloaded, RequestError):
                assert shares.held("x", client) == before
        shares.check_integrity()
        assert shares.held("x") <= 100
        if share < 1:
            assert shares.held("x") < 100, "a newcomer finds some"


def test_clients_take_turns_whoever_came_first() -> None:
    queue: FairQueue[int] = FairQueue()
    for item in range(4):
        queue.push("a", item)
    queue.push("b", 10)
    order = []
    while (following := queue.pop()) is not None:
        order.append(following[1])
        queue.charge(following[0], 1)
    assert order == [0, 10, 1, 2, 3]


def test_work_counts_and_not_items() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("large", "large"):
        queue.push("a", item)
    for item in ("small",) * 4:
        queue.push("b", item)
    order = []
    while (following := queue.pop()) is not None:
        order.append(following[1])
        queue.charge(following[0], {"large": 3, "small": 1}[following[1]])
    assert order == ["large", "small", "small", "small", "large", "small"]


def test_turns_are_not_saved_up() -> None:
    queue: FairQueue[int] = FairQueue()
    for item in range(10):
        queue.push("a", item)
        assert queue.pop() == ("a", item)
        queue.charge("a", 1)
    for item in range(4):
        queue.push("b", item)
        queue.push("a", 10 + item)
    order = []
    while (following := queue.pop()) is not None:
        order.append(following[0])
        queue.charge(following[0], 1)
    assert order.count("b") == 4
    assert order[:5].count("a") >= 1, "b isn't owed ten turns"


def test_a_removed_item_does_not_come_up() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("a", 1)
    queue.push("a", 2)
    queue.remove("a", 1)
    queue.remove("a", 7)
    queue.remove("b", 1)
    assert (len(queue), queue.count("a")) == (1, 1)
    assert queue.pop() == ("a", 2)
    assert queue.pop() is None


def test_turns_pass_between_clients_and_over_who_left() -> None:
    async def work() -> list[str]:
        turns, order = Turns(1, 8, "tasks"), []

        async def one(name: str) -> None:
            async with turns.turn(name[0]):
                order.append(name)
                await asyncio.sleep(0)

        async with turns.turn("x"):
            waiting = [asyncio.create_task(one(name)) for name in ("a1", "a2", "a3", "b1")]
            await asyncio.sleep(0)
            assert len(turns) == 4
            waiting[1].cancel()
            await asyncio.sleep(0)
            assert len(turns) == 3
        await asyncio.gather(*waiting, return_exceptions=True)
        async with turns.turn("y"):  # nothing was lost
            pass
        return order

    assert asyncio.run(work()) == ["a1", "b1", "a3"]


def test_one_client_leaves_room_to_wait() -> None:
    async def work() -> None:
        turns = Turns(1, 4, "tasks")

        async def one(client: str) -> None:
            async with turns.turn(client):
                pass

        async with turns.turn("x"):
            waiting = [asyncio.create_task(one("a")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="2 tasks are waiting, 2 of them yours"):
                await one("a")
            waiting.append(asyncio.create_task(one("b")))
            await asyncio.sleep(0)
            assert len(turns) == 3
        await asyncio.gather(*waiting)

    asyncio.run(work())
