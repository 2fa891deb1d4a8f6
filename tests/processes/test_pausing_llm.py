"""`LLM.pause`, apart and colocated, through the death of the node that stands still."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import pytest

from megainfer import LLM, SamplingParams
from megainfer.errors import RequestError
from megainfer.frontend.outputs import RequestOutput
from tests.support.checkpoints import write_checkpoint
from tests.support.served import pid_of

SECONDS = 60.0
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model")))


class Asked:
    """A request, answered on a thread of its own."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        self._answers: list[RequestOutput] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.extend(llm.generate([[1, 2]], params, progress=False))
        )
        self._thread.start()

    def answer(self) -> tuple[list[int], str | None]:
        self._thread.join(SECONDS)
        (output,) = self._answers
        return output.outputs[0].token_ids, output.outputs[0].finish_reason


def until(reached: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not reached():
        assert monotonic() < deadline
        sleep(0.002)


def counted(llm: LLM) -> dict[str, Any]:
    return llm.stats()["attention node 0"]


def some_came(llm: LLM) -> bool:
    return any(len(request.output) > 3 for request in list(llm.engine._requests.values()))


@pytest.fixture(scope="module")
def apart(folder: str) -> Iterator[LLM]:
    with LLM(folder, micro_batches=1, progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def colocated(folder: str) -> Iterator[LLM]:
    with LLM(folder, micro_batches=1, progress=False, colocated=True) as llm:
        yield llm


@pytest.mark.parametrize("shape", ["apart", "colocated"])
@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_each_mode(request: pytest.FixtureRequest, shape: str, mode: str) -> None:
    llm: LLM = request.getfixturevalue(shape)
    expected = llm.generate([[1, 2]], LONG, progress=False)[0].outputs[0].token_ids
    running = Asked(llm, LONG)
    until(lambda: some_came(llm))
    llm.pause(mode)
    assert llm.is_paused
    new = Asked(llm, SHORT)
    until(lambda: counted(llm)["waiting"] == 1)
    before = counted(llm)["generated_tokens"]
    if mode != "keep":
        tokens, reason = running.answer()
        assert reason == ("length" if mode == "wait" else "abort")
        assert tokens == expected[: len(tokens)]
        assert (len(tokens) == len(expected)) == (mode == "wait")
    assert counted(llm)["generated_tokens"] == before
    llm.resume()
    assert not llm.is_paused
    assert new.answer() == (expected[:4], "length")
    if mode == "keep":
        assert running.answer() == (expected, "length")


def test_a_node_that_is_started_again_stands_still_too(apart: LLM) -> None:
    llm = apart
    expected = llm.generate([[1, 2]], LONG, progress=False)[0].outputs[0].token_ids
    running = Asked(llm, LONG)
    until(lambda: some_came(llm))
    llm.pause("keep")
    os.kill(pid_of(llm, "attent-0"), signal.SIGKILL)
    until(lambda: bool(dict(llm.engine.attendance.restarts())) and llm.engine.state() is None)
    until(lambda: counted(llm)["waiting"] == 1)
    assert counted(llm)["generated_tokens"] == 0
    llm.resume()
    assert running.answer() == (expected, "length")


def test_what_is_no_mode(apart: LLM) -> None:
    llm = apart
    with pytest.raises(RequestError, match="mode must be one of abort, wait, keep, not 'sleep'"):
        llm.pause("sleep")
    llm.resume()  # of nothing
    assert len(llm.generate([[1]], SHORT, progress=False)) == 1
