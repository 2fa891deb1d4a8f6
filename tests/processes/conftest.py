import os
import subprocess
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import IO

import pytest

from megainfer.supervise import engine_process
from tests.support.forked import Files, start, withheld


class EngineProgram:
    """What `EngineProcess` wants of `subprocess.Popen`, of a program that is forked."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int], stdin: int) -> None:
        _, option, module, *arguments = command
        assert (option, stdin) == ("-m", subprocess.PIPE)
        reader, writer = os.pipe()
        self.stdin: IO[bytes] = open(writer, "wb")  # noqa: SIM115  # its owner closes it
        try:
            files = Files(output=1, error=2, input=reader, passed=pass_fds)
            process = start(module, arguments, files, os.environ)
        finally:
            os.close(reader)
        self.pid, self.wait, self.kill = process.pid, process.wait, process.kill


@pytest.fixture(scope="module", autouse=True)
def _programs_are_forked_unless_fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """And so are the processes of each `LLM`."""
    is_fresh = _is_fresh(request)
    with withheld(is_fresh), pytest.MonkeyPatch.context() as patch:
        if not is_fresh:
            program = SimpleNamespace(**{**vars(subprocess), "Popen": EngineProgram})
            patch.setattr(engine_process, "subprocess", program)
        yield


@pytest.fixture(autouse=True)
def _a_fresh_test_forks_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    with withheld(_is_fresh(request)):
        yield


def _is_fresh(request: pytest.FixtureRequest) -> bool:
    """Whether a module or a test is marked so."""
    return request.node.get_closest_marker("fresh") is not None
