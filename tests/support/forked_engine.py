"""The process that an `LLM` starts, forked as tests/support/forked.py says."""

import os
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import IO

from megainfer.supervise import engine_process
from tests.support.forked import Files, start


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


STARTED_SO = SimpleNamespace(**{**vars(subprocess), "Popen": EngineProgram})
"""As `engine_process.subprocess`."""


def fork_engines() -> None:
    """From now on in this process, and in those that are forked from it."""
    engine_process.subprocess = STARTED_SO  # type: ignore[assignment]  # in its place
