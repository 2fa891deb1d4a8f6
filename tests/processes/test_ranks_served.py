"""Nodes of several processes: one that dies or hangs costs a pause, and no token."""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from megainfer import LLM, AsyncLLM, SamplingParams
from tests.support.checkpoints import write_checkpoint
from tests.support.long_answer import LongAnswer
from tests.support.served import pid_of, session_members

LONG = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
PROMPTS = [[n + 1, 7, 9, n] * 9 for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))


FAULTS = (
    ("expert-0.1", signal.SIGKILL),
    ("expert-0.1", signal.SIGSTOP),
    ("expert-0", signal.SIGKILL),
    ("attent-0.1", signal.SIGKILL),
)


def test_a_rank_that_is_lost_costs_a_pause(folder: Path) -> None:
    """Tokens are the undisturbed ones, and afterwards all ranks of its node are others."""

    async def main() -> None:
        async with AsyncLLM(str(folder), micro_batches=2, attn_tp=2, ffn_tp=2) as llm:
            undisturbed = await tokens(llm, lambda: None)
            for name, fault in FAULTS:
                before = ranks_of(llm.llm, name)
                node = pid_of(llm.llm, name)
                lost = partial(os.kill, node, fault)
                assert await tokens(llm, lost) == undisturbed, name
                assert not {*ranks_of(llm.llm, name)} & {*before}, name
            await asyncio.to_thread(end, llm.llm)

    asyncio.run(main())


def end(llm: LLM) -> None:
    """All ranks end with the instance."""
    session = os.getsid(llm._local.process.pid)
    ranks = {*ranks_of(llm, "expert-0"), *ranks_of(llm, "attent-0")}
    assert ranks <= {pid for pid, _ in session_members(session)}
    llm.shutdown()
    assert not ranks & {pid for pid, _ in session_members(session)}


async def tokens(llm: AsyncLLM, meanwhile: Callable[[], None]) -> list[list[int]]:
    """Of each prompt; `meanwhile` is called once, when all have begun."""
    streams = [LongAnswer(llm, prompt, LONG) for prompt in PROMPTS]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream.run()) for stream in streams]
        for stream in streams:
            await stream.begun.wait()
        meanwhile()
    return [task.result().outputs[0].token_ids for task in tasks]


def ranks_of(llm: LLM, name: str) -> list[int]:
    """Process ids of the ranks of this one's node."""
    first = name.partition(".")[0]
    return [pid_of(llm, rank) for rank in (first, f"{first}.1")]
