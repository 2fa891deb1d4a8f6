"""An engine behind its own OpenAI-compatible server."""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from statistics import median
from time import monotonic
from typing import TypeVar

from peers.completions import BadAnswer, complete, is_healthy
from peers.entrants import SERVED_NAME, Entrant
from peers.measurement import Load, Round
from peers.process_group import EngineFailed, ProcessGroup

Answer = TypeVar("Answer")

POLL_SECONDS = 0.25


class ServedEngine:
    """Every request is streamed, on a connection of its own."""

    def __init__(self, entrant: Entrant, vocabulary: int, limit: float) -> None:
        """limit: seconds that it may take to become ready, and for a load.

        Raises EngineFailed.
        """
        assert entrant.port is not None
        self.entrant, self._port = entrant, entrant.port
        self._vocabulary, self._limit = vocabulary, limit
        self._group = ProcessGroup(entrant.arguments, entrant.variables)
        try:
            self._call(self._await_health())
        except BaseException:
            self.close()
            raise

    def running(self) -> AbstractContextManager[None]:
        return self._group.running()

    def run(self, load: Load, seed: int) -> Round:
        prompts = load.prompts(self._vocabulary, seed)
        timing = self._call(complete(self._port, SERVED_NAME, prompts, load.output_tokens))
        return Round(seconds=timing.seconds, ttft=1e3 * median(timing.firsts))

    def run_whole(self, load: Load, seed: int) -> float:
        """Seconds of one load."""
        return self.run(load, seed).seconds

    def close(self) -> None:
        self._group.process.terminate()
        self._group.end()

    async def _await_health(self) -> None:
        deadline = monotonic() + self._limit
        while not await is_healthy(self._port):
            if self._group.process.poll() is not None:
                raise self._failure(f"ended with {self._group.process.returncode}")
            if monotonic() > deadline:
                raise self._failure("did not become healthy in time")
            await asyncio.sleep(POLL_SECONDS)

    def _call(self, work: Coroutine[None, None, Answer]) -> Answer:
        try:
            return asyncio.run(_bounded(work, self._limit))
        except TimeoutError:
            raise self._failure(f"did not answer within {self._limit:g} s") from None
        except (BadAnswer, OSError) as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error

    def _failure(self, what: str) -> EngineFailed:
        return EngineFailed(f"{what}\n{self._group.last_words()}")


async def _bounded(work: Coroutine[None, None, Answer], limit: float) -> Answer:
    async with asyncio.timeout(limit):
        return await work
