"""Expert nodes of several processes: one that dies or hangs costs a pause, and no token."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from megainfer import LLM, AsyncLLM, SamplingParams
from megainfer.frontend.outputs import RequestOutput
from tests.support.checkpoints import write_checkpoint
from tests.support.served import pid_of, run_cli, session_members

LONG = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
PROMPTS = [[n + 1, 7, 9, n] * 9 for n in range(4)]
SHAPE = {"attn_gpus": 2, "ffn_gpus": 2, "ffn_tp": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("name", "fault"),
    [("expert-0.1", signal.SIGKILL), ("expert-1.1", signal.SIGSTOP), ("expert-1", signal.SIGKILL)],
    ids=["killed", "stopped", "first killed"],
)
def test_a_rank_that_is_lost_costs_a_pause(folder: Path, name: str, fault: signal.Signals) -> None:
    """Tokens are the undisturbed ones, and afterwards all ranks of its node are others."""

    async def main() -> None:
        async with AsyncLLM(str(folder), micro_batches=2, **SHAPE) as llm:
            undisturbed = await tokens(llm, lambda: None)
            before = ranks_of(llm.llm, name)
            node = pid_of(llm.llm, name)
            assert await tokens(llm, lambda: os.kill(node, fault)) == undisturbed
            after = ranks_of(llm.llm, name)
            assert len(after) == 2
            assert not {*after} & {*before}

    asyncio.run(main())


async def tokens(llm: AsyncLLM, meanwhile: Callable[[], None]) -> list[list[int]]:
    """Of each prompt; `meanwhile` is called once, when all have begun."""
    streams = [Stream(llm, prompt) for prompt in PROMPTS]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream.run()) for stream in streams]
        for stream in streams:
            await stream.begun.wait()
        meanwhile()
    return [task.result().outputs[0].token_ids for task in tasks]


class Stream:
    def __init__(self, llm: AsyncLLM, prompt: list[int]) -> None:
        self.begun = asyncio.Event()
        self._outputs = llm.generate(prompt, LONG)

    async def run(self) -> RequestOutput:
        async for output in self._outputs:
            if len(output.outputs[0].token_ids) > 3:
                self.begun.set()
        return output


def ranks_of(llm: LLM, name: str) -> list[int]:
    """Process ids of the node that this rank is of."""
    first = name.partition(".")[0]
    return [pid_of(llm, first), pid_of(llm, f"{first}.1")]


def test_all_ranks_end_with_the_instance(folder: Path) -> None:
    with LLM(str(folder), progress=False, ffn_tp=3) as llm:
        ranks = [pid_of(llm, name) for name in ("expert-0", "expert-0.1", "expert-0.2")]
        (output,) = llm.generate(PROMPTS[0], LONG, progress=False)
        assert len(output.outputs[0].token_ids) == LONG.max_tokens
    assert not {*ranks} & {pid for pid, _ in session_members(os.getsid(0))}


def test_a_dry_run_counts_ranks(folder: Path) -> None:
    said = run_cli("serve", str(folder), "--ffn-gpus", "2", "--ffn-tp", "2", "--dry-run")
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("2 ranks, cores ") == 2
    assert "--ffn-gpus counts nodes of --ffn-tp 2 processes" in said.stdout
    refused = run_cli("serve", str(folder), "--ffn-tp", "7", "--dry-run")
    assert refused.returncode != 0
    assert "--ffn-tp 7 doesn't divide the" in refused.stderr
