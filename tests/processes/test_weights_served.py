"""`update_weights` of instances in processes: what serves, what dies meanwhile, what comes back."""

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from megainfer import LLM, AsyncLLM, SamplingParams
from megainfer.errors import CheckpointError, ConfigError, NodeDied
from megainfer.frontend.outputs import CompletionOutput, WeightSpan
from megainfer.messages.from_child import UpdateWeights
from megainfer.messages.message import Message, Role
from tests.support.checkpoints import write_checkpoint
from tests.support.long_answer import LongAnswer
from tests.support.served import pid_of

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
PROMPTS = [[n + 1, 7, 9, n] * 9 for n in range(6)]
SHAPES: dict[str, dict[str, Any]] = {
    "1x1": {},
    "2x2": {"attn_gpus": 2, "ffn_gpus": 2},
    "colocated": {"colocated": True},
    "ranks": {"attn_tp": 2, "ffn_tp": 2},
    "int8": {"expert_dtype": "int8", "attention_dtype": "int8", "kernels": "cpu"},
}
SECONDS = 60.0

Tokens = list[list[int]]


class Folders(NamedTuple):
    old: Path
    new: Path


def written(folder: Path) -> Folders:
    """Two models of one shape."""
    names = enumerate(("old", "new"))
    return Folders(*(write_checkpoint("mixtral", "gqa", folder / n, seed=i) for i, n in names))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return written(tmp_path_factory.mktemp("models"))


class Answers:
    """Of instances that have started with one of the `kept` folders; asked once."""

    def __init__(self, kept: Folders) -> None:
        self._kept = kept
        self._known: dict[tuple[str, str], Tokens] = {}

    def of(self, name: str, shape: str = "1x1") -> Tokens:
        if (name, shape) not in self._known:
            folder = getattr(self._kept, name)
            self._known[name, shape] = fresh(folder, **SHAPES[shape])
        return self._known[name, shape]


@pytest.fixture(scope="module")
def answers(kept: Folders) -> Answers:
    return Answers(kept)


@pytest.fixture(scope="module")
def shared(kept: Folders) -> Iterator[Callable[[str], LLM]]:
    """Of a shape, the instance that tests of it share; it serves the old weights, called old."""
    with ExitStack() as ends:
        made: dict[str, LLM] = {}

        def of(shape: str) -> LLM:
            if shape not in made:
                made[shape] = ends.enter_context(served(kept.old, **SHAPES[shape]))
            made[shape].update_weights(kept.old, version="old")
            return made[shape]

        yield of


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """One's own: they may be deleted."""
    names = ("old", "new")
    own = (
        write_checkpoint("mixtral", "gqa", tmp_path / n, seed=7 + i) for i, n in enumerate(names)
    )
    return Folders(*own)


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[LLM]:
    with LLM(str(folder), micro_batches=1, progress=False, **options) as llm:
        yield llm


def tokens_of(llm: LLM) -> Tokens:
    outputs = llm.generate(PROMPTS, PARAMS, progress=False)
    return [output.outputs[0].token_ids for output in outputs]


def fresh(folder: Path, **options: Any) -> Tokens:
    """What an instance that starts with this folder answers."""
    with served(folder, **options) as llm:
        return tokens_of(llm)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_updated_instance_equals_one_that_was_started_with_the_weights(
    folders: Folders, shape: str
) -> None:
    options = SHAPES[shape]
    expected = fresh(folders.new, **options)
    with served(folders.old, **options) as llm:
        before = tokens_of(llm)
        assert expected != before
        assert llm.weight_version == "0"
        assert llm.update_weights(folders.new) == "1"
        shutil.rmtree(folders.new)
        assert llm.weight_version == "1"
        outputs = llm.generate(PROMPTS, PARAMS, progress=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert {output.outputs[0].weight_versions for output in outputs} == {(WeightSpan("1", 24),)}
        file = folders.old / "model.safetensors"
        assert llm.update_weights(file, version="back again") == "back again"
        assert tokens_of(llm) == before


def test_tensors_of_the_callers_own(
    kept: Folders, shared: Callable[[str], LLM], answers: Answers
) -> None:
    llm = shared("1x1")
    tensors = load_file(kept.new / "model.safetensors")
    assert llm.update_weights(tensors, version="trained") == "trained"
    for tensor in tensors.values():
        tensor.zero_()  # as the next step of a trainer would
    os.kill(pid_of(llm, "expert-0"), signal.SIGKILL)
    assert tokens_of(llm) == answers.of("new")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        llm.update_weights({})
    assert llm.update_weights(load_file(kept.old / "model.safetensors")).isdigit()
    assert tokens_of(llm) == answers.of("old")


def test_a_node_that_is_started_again_has_the_current_weights(folders: Folders) -> None:
    expected = fresh(folders.new)
    with served(folders.old) as llm:
        llm.update_weights(folders.new)
        shutil.rmtree(folders.new)
        shutil.rmtree(folders.old)
        for name, node in (("expert-0", Role.EXPERT), ("attent-0", Role.ATTENTION)):
            os.kill(pid_of(llm, name), signal.SIGKILL)
            assert tokens_of(llm) == expected
            assert dict(llm.engine.attendance.restarts())[node, 0] == 1


@pytest.mark.parametrize("victim", ["expert-1", "attent-1"])
def test_a_node_that_dies_meanwhile_leaves_the_old_weights_whole(
    kept: Folders, shared: Callable[[str], LLM], answers: Answers, victim: str
) -> None:
    """It is stopped, so that it can't be through before it is given up and killed."""
    llm = shared("2x2")
    os.kill(pid_of(llm, victim), signal.SIGSTOP)
    with pytest.raises(ConfigError, match=r"weights 'old' serve on: .* node 1 died"):
        llm.update_weights(kept.new)
    assert llm.weight_version == "old"
    assert tokens_of(llm) == answers.of("old", "2x2")
    assert llm.update_weights(kept.new, version="retried") == "retried"
    assert tokens_of(llm) == answers.of("new", "2x2")


def test_kills_at_any_moment_leave_one_version_or_the_other(
    kept: Folders, shared: Callable[[str], LLM], answers: Answers
) -> None:
    llm = shared("2x2")
    for turn, name in enumerate(("new", "old", "new", "old")):
        victim = pid_of(llm, ("expert-0", "attent-0", "expert-1", "attent-1")[turn])
        killer = threading.Timer(0.004 * turn, os.kill, (victim, signal.SIGKILL))
        killer.start()
        try:
            serving = llm.update_weights(kept._asdict()[name], version=name)
        except ConfigError:
            serving = llm.weight_version
        killer.join()
        assert tokens_of(llm) == answers.of(serving, "2x2")


def test_requests_under_load_change_over_once(kept: Folders) -> None:
    """Every answer has the versions in order, and its tokens are those that each version gives
    after what came before."""

    async def main() -> None:
        async with (
            asyncio.timeout(SECONDS),
            AsyncLLM(str(kept.old), micro_batches=2, **SHAPES["2x2"]) as llm,
            asyncio.TaskGroup() as group,
        ):
            streams = [LongAnswer(llm, prompt, LONG) for prompt in PROMPTS]
            tasks = [group.create_task(stream.run()) for stream in streams]
            for stream in streams:
                await stream.begun.wait()
            assert await llm.update_weights(kept.new, version="new") == "new"
            for prompt, task in zip(PROMPTS, tasks, strict=True):
                await check(llm.llm, prompt, (await task).outputs[0])

    async def check(llm: LLM, prompt: list[int], answer: CompletionOutput) -> None:
        (first, count, _), (second, rest, _) = answer.weight_versions
        assert (first, second, count + rest) == ("0", "new", LONG.max_tokens)
        longer = [*prompt, *answer.token_ids[:count]]
        after = replace(LONG, max_tokens=rest)
        (again,) = await asyncio.to_thread(llm.generate, [longer], after, progress=False)
        assert again.outputs[0].token_ids == answer.token_ids[count:]

    asyncio.run(main())


def test_what_is_wrong_with_them_is_said_and_the_old_ones_serve(
    kept: Folders, shared: Callable[[str], LLM], answers: Answers, tmp_path: Path
) -> None:
    llm = shared("1x1")
    tensors = load_file(kept.new / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    wrong = {
        "no tensor": {k: v for k, v in tensors.items() if k != name},
        "has shape": tensors | {name: tensors[name][:, :-1].contiguous()},
        "is stored as I32": tensors | {name: tensors[name].to(torch.int32)},
    }
    for reason, content in wrong.items():
        save_file(content, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=f"{name}.*{reason}|{reason} {name}"):
            llm.update_weights(tmp_path / "wrong.safetensors")
    with pytest.raises(ConfigError, match=r"version must be a string of .*, not 3"):
        llm.update_weights(kept.new, version=3)  # type: ignore[arg-type]  # no text, which is refused
    assert llm.weight_version == "old"
    assert tokens_of(llm) == answers.of("old")


def test_who_waits_for_an_update_hears_of_the_shutdown(
    kept: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, said = threading.Event(), []
    with served(kept.old) as llm:
        link = llm._local.process.link
        send = link.send

        def swallow(message: Message) -> None:
            """The supervisor never hears of it, and so never answers."""
            asked.set() if isinstance(message, UpdateWeights) else send(message)

        monkeypatch.setattr(link, "send", swallow)

        def update() -> None:
            try:
                llm.update_weights(kept.new)
            except NodeDied as error:
                said.append(str(error))

        waiting = threading.Thread(target=update, daemon=True)
        waiting.start()
        assert asked.wait(SECONDS)
    waiting.join(SECONDS)
    assert said == ["this LLM was shut down; make a new one"]


def test_updates_leave_no_memory_and_no_files_behind(
    kept: Folders, shared: Callable[[str], LLM]
) -> None:
    llm = shared("1x1")
    supervisor, node = llm._local.process.pid, pid_of(llm, "expert-0")
    llm.update_weights(kept.new)
    held = [open_files(pid) for pid in (os.getpid(), supervisor, node)]
    for turn in range(6):
        llm.update_weights(kept.old if turn % 2 else kept.new)
    assert [open_files(pid) for pid in (os.getpid(), supervisor, node)] == held
    assert held[0] == held[2] == []
    assert len(held[1]) == 1


def open_files(pid: int) -> list[str]:
    """Copies of weights that a process has open, in the end: what is let go of is so at once, but
    a node may still be entering."""
    deadline = monotonic() + SECONDS
    while len(found := _copies(pid)) > 1 and monotonic() < deadline:
        sleep(0.01)
    return ["copy"] * len(found)


def _copies(pid: int) -> list[str]:
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            continue  # it was closed while we looked
    return [link for link in links if "megainfer-weights" in link]
