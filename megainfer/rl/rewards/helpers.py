"""Rewards that processes of their own find, each answer within a time limit."""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence

from megainfer.errors import ConfigError, MegaInferError
from megainfer.helper_process import Helper, HelperDied, HelperProcess
from megainfer.rl.rewards.score import Attempt, Score


class HelperReward:
    """Scores by `functions.load(spec)`.

    workers: processes that score, each one answer at a time. seconds: that an answer may take, on
    the clock; a process that takes longer is killed and started again.
    """

    def __init__(self, spec: str, workers: int, seconds: float) -> None:
        self._seconds = seconds
        self._runner = asyncio.Runner()
        arguments = [spec, str(os.getpid())]
        helper = Helper("megainfer.rl.rewards.worker", arguments, greeted=_check_greeting)
        self._processes = [HelperProcess(helper, 1, "answers") for _ in range(workers)]

    def start(self) -> None:
        """Start one process, to know that the function is there. Raises ConfigError."""
        self._runner.run(self._processes[0].prepare())

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        """One an attempt. Raises MegaInferError where a process can't be started."""
        return self._runner.run(self._score_all(attempts))

    def close(self) -> None:
        """End the processes; afterwards nothing can be scored."""
        if self._processes:
            self._runner.run(self._close_all())
            self._processes = []
        self._runner.close()

    async def _score_all(self, attempts: Sequence[Attempt]) -> list[Score]:
        scores: dict[int, Score] = {}
        left = iter(enumerate(attempts))
        try:
            async with asyncio.TaskGroup() as group:
                for process in self._processes:
                    group.create_task(self._work(process, left, scores))
        except* MegaInferError as errors:  # a process that died doesn't start again
            raise errors.exceptions[0] from None
        return [scores[place] for place in range(len(attempts))]

    async def _work(
        self, process: HelperProcess, left: Iterator[tuple[int, Attempt]], scores: dict[int, Score]
    ) -> None:
        """Score what is left, one by one, while others do the same."""
        for place, attempt in left:
            question = json.dumps((attempt.prompt, attempt.response, attempt.answer)).encode()
            try:
                reward, skipped = json.loads(await process.ask(question, self._seconds))
                scores[place] = Score(reward, skipped)
            except HelperDied:
                reason = f"no reward within {self._seconds:g} s, or its process died"
                scores[place] = Score(None, reason)

    async def _close_all(self) -> None:
        for process in self._processes:
            await process.close()


def _check_greeting(frame: bytes) -> None:
    refusal = json.loads(frame)
    if refusal is not None:
        raise ConfigError(refusal)
