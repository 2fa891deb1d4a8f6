"""Sending a load: each request at its time, at most so many at once, and what came of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from megainfer.bench.sample import Outcome, Sample

Send = Callable[[Sample], Awaitable[Outcome]]


@dataclass(frozen=True)
class Result:
    """outcomes: of the requests that ended, in the order of the samples. unfinished: those that
    were under way, or not sent yet, when the run was interrupted."""

    outcomes: list[Outcome]
    seconds: float
    unfinished: int


async def run_load(
    send: Send,
    samples: Sequence[Sample],
    times: Sequence[float],
    max_concurrency: int | None,
    done: Callable[[Outcome], None],
) -> Result:
    """Send each sample at its time (seconds from now). Cancelling this ends it with what is there.

    done: called after each request.
    """
    room = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()

    async def one(sample: Sample, due: float) -> Outcome:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        arrived = time.perf_counter()
        async with room:
            queued = time.perf_counter() - arrived
            outcome = await send(sample)
        outcome.queued = queued
        done(outcome)
        return outcome

    begin = time.perf_counter()
    tasks = [
        asyncio.create_task(one(sample, begin + due))
        for sample, due in zip(samples, times, strict=True)
    ]
    try:
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ended = [task.result() for task in tasks if not task.cancelled()]
    return Result(ended, time.perf_counter() - begin, len(tasks) - len(ended))
