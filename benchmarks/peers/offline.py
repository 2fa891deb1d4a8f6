"""An engine whose program answers commands on its standard streams."""

import json
import os
import select
from collections.abc import Mapping
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

from measures import (
    T_A_KINDS,
    T_E_KINDS,
    idle_share,
    mean_of,
    mean_transfer,
    of_role,
)

from peers.entrants import Entrant
from peers.measurement import Load, Round
from peers.process_group import EngineFailed, ProcessGroup

PIECE = 1 << 16


class OfflineEngine:
    """See `peers.programs.exchange` for the words that are exchanged."""

    def __init__(self, entrant: Entrant, vocabulary: int, limit: float) -> None:
        """limit: seconds that it may take to become ready, and to answer a command.

        Raises EngineFailed.
        """
        self.entrant = entrant
        self._vocabulary, self._limit = vocabulary, limit
        self._group = ProcessGroup(entrant.arguments, entrant.variables)
        self._unread = b""
        try:
            self._hear()
        except BaseException:
            self.close()
            raise

    def running(self) -> AbstractContextManager[None]:
        return self._group.running()

    def run(self, load: Load, seed: int) -> Round:
        """One load whole, and once to its first tokens unless it tells their time, each with
        fresh prompts."""
        whole = self._ask(load.prompts(self._vocabulary, seed), load.output_tokens)
        first = whole.get("first_seconds")
        if first is None:
            first = self._ask(load.prompts(self._vocabulary, seed + 1), 1)["seconds"]
        return Round(seconds=whole["seconds"], first_seconds=first, **_stages(whole))

    def run_whole(self, load: Load, seed: int) -> float:
        """Seconds of one load."""
        answer = self._ask(load.prompts(self._vocabulary, seed), load.output_tokens)
        return float(answer["seconds"])

    def close(self) -> None:
        self._group.end()

    def _ask(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        assert self._group.process.stdin is not None
        command = {"prompts": prompts, "max_tokens": max_tokens}
        try:
            self._group.process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise self._failure("ended") from None
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        deadline = monotonic() + self._limit
        while b"\n" not in self._unread:
            self._unread += self._read(deadline)
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self, deadline: float) -> bytes:
        assert self._group.process.stdout is not None
        fd = self._group.process.stdout.fileno()
        if not select.select([fd], [], [], max(0.0, deadline - monotonic()))[0]:
            raise self._failure(f"did not answer within {self._limit:g} s")
        piece = os.read(fd, PIECE)
        if not piece:
            raise self._failure("ended")
        return piece

    def _failure(self, what: str) -> EngineFailed:
        return EngineFailed(f"{what}\n{self._group.last_words()}")


def _stages(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Of an engine that tells its nodes' counters; times in ms."""
    if "counters" not in answer:
        return {}
    attention = of_role(answer["counters"], "attention")
    expert = of_role(answer["counters"], "expert")
    return {
        "micro_batches": answer["micro_batches"],
        "t_a": 1e3 * mean_of(attention, T_A_KINDS, "combine"),
        "t_e": 1e3 * mean_of(expert, T_E_KINDS, "expert"),
        "t_c": 1e3 * mean_transfer(attention + expert),
        "idle_attention": idle_share(attention, answer["seconds"]),
        "idle_expert": idle_share(expert, answer["seconds"]),
    }
