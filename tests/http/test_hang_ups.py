"""Who is told that a client has hung up, where several end the same work at once."""

import asyncio

import pytest

from server.http.connection import ClientGone, while_connected
from tests.support.engine_talk import run


async def begun(hang_up: asyncio.Event, cleaned: list[str]) -> "asyncio.Task[str]":
    """A task that works for a client, until this event says that it is gone."""
    started = asyncio.Event()

    async def receive() -> dict[str, str]:
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def work() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("work")
        return "never"

    task = asyncio.create_task(while_connected(receive, work()))
    await started.wait()
    await asyncio.sleep(0)  # its watcher waits as well
    return task


def test_a_hang_up_ends_the_work_and_leaves_its_task_as_it_was() -> None:
    async def check() -> None:
        hang_up, cleaned = asyncio.Event(), list[str]()
        task = await begun(hang_up, cleaned)
        hang_up.set()
        with pytest.raises(ClientGone):
            await task
        assert cleaned == ["work"]
        assert task.cancelling() == 0

    run(check())


def test_a_cancellation_at_the_same_time_as_the_hang_up_goes_before_it() -> None:
    async def check() -> None:
        hang_up, cleaned = asyncio.Event(), list[str]()
        task = await begun(hang_up, cleaned)
        hang_up.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["work"]

    run(check())


def test_what_was_done_is_returned_and_nobody_watches_any_more() -> None:
    async def check() -> None:
        watching = asyncio.Event()

        async def receive() -> dict[str, str]:
            watching.set()
            await asyncio.Event().wait()
            return {}

        async def work() -> str:
            await watching.wait()
            return "done"

        before = asyncio.all_tasks()
        assert await while_connected(receive, work()) == "done"
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    run(check())
