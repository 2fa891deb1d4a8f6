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
from peers.measurement import Load, Result
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

    def run(self, load: Load, seed: int) -> Result:
        """One load once to its first tokens, and once whole, each with fresh prompts."""
        first = self._ask(load.prompts(self._vocabulary, seed), 1)
        whole = self._ask(load.prompts(self._vocabulary, seed + 1), load.output_tokens)
        seconds = whole["seconds"]
        return Result(
            tokens_per_second=load.tokens / seconds,
            decode_per_second=(load.tokens - load.concurrency)
            / max(seconds - first["seconds"], 1e-9),
            prefill_per_second=load.concurrency * load.prompt_tokens / first["seconds"],
            **_stages(whole),
        )

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
        "t_a": 1e3 * mean_of(attention, T_A_KINDS, "dispatch"),
        "t_e": 1e3 * mean_of(expert, T_E_KINDS, "expert"),
        "t_c": 1e3 * mean_transfer(attention + expert),
        "idle_attention": idle_share(attention, answer["seconds"]),
        "idle_expert": idle_share(expert, answer["seconds"]),
    }
