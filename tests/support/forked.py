"""Programs forked from a process that has imported what they do: a new interpreter takes seconds of
processor time for torch, the command line and a web framework, each time.

    with offered():
        process = start("megainfer", ["serve", ...], Files(output=1, error=1), os.environ)

`python -m tests.support.forked FD` is the process that is forked. It has no other threads and has
computed nothing; beside having imported more than it may need, a program finds what a new
interpreter would give it: arguments, environment, folder, files and a session of its own. Tests of
how programs start are marked `fresh`, and have new interpreters.
"""

import fcntl
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from megainfer.supervise.child import fork_process
from megainfer.supervise.forking.libraries import load_libraries
from tests.support.processes import adopt_orphans

ROOT = Path(__file__).parents[2]
ANSWER_SECONDS = 300.0
"""Importing it all takes five, but this machine may be busy with others."""
REQUEST_BYTES, MOST_FILES = 1 << 17, 8
IMPORTED = (
    *("megainfer.cli", "megainfer.commands.bench.serving", "megainfer.commands.bench.offline"),
    *("megainfer.commands.conversation", "megainfer.commands.chat_client", "megainfer.llm"),
    *("megainfer.model_folder.deployment", "megainfer.launch.expectation"),
    *("megainfer.supervise.engine_process", "megainfer.attention_node.process"),
    *("megainfer.expert_node.process", "megainfer.colocated.process", "server.process", "uvicorn"),
)


@dataclass(frozen=True)
class Files:
    """Descriptors of a program. passed: those that it has under the numbers that they have here."""

    output: int
    error: int
    input: int | None = None  # nothing to read
    passed: Sequence[int] = ()


class Forked:
    """What there is of `subprocess.Popen`, of a program that was forked elsewhere."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self._reap()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self._reap()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)


class ForkServer:
    """The process that is forked, from outside. Its programs become children of this process."""

    def __init__(self) -> None:
        adopt_orphans()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_SECONDS)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # or an interrupt of the tests would end it first
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()

    def start(
        self, module: str, arguments: Sequence[str], files: Files, environment: Mapping[str, str]
    ) -> Forked:
        with open(os.devnull, "rb") as nothing:
            first = nothing.fileno() if files.input is None else files.input
            descriptors = [first, files.output, files.error, *files.passed]
            numbers = [0, 1, 2, *files.passed]
            request = [[module, *arguments], os.getcwd(), dict(environment), numbers]
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        try:
            answer = self._control.recv(64)
            assert answer, "the process that programs are forked from has ended"
        except BaseException:
            self.close()  # or what it answers later would be taken for another answer
            raise
        return Forked(int(answer))

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """It holds nothing that has to be ended in order."""
        self._control.close()
        self._process.kill()
        self._process.wait()


@dataclass
class _Offer:
    server: ForkServer | None = None
    withheld: bool = False


_offers: list[_Offer] = []


@contextmanager
def offered() -> Iterator[None]:
    """Programs are forked meanwhile; the first one that is starts the process that they come of."""
    _offers.append(_Offer())
    try:
        yield
    finally:
        if (server := _offers.pop().server) is not None:
            server.close()


@contextmanager
def withheld(is_withheld: bool) -> Iterator[None]:
    """Whether programs have new interpreters meanwhile, even where others are forked."""
    offer = _offers[-1]
    before, offer.withheld = offer.withheld, is_withheld
    try:
        yield
    finally:
        offer.withheld = before


def start(
    module: str, arguments: Sequence[str], files: Files, environment: Mapping[str, str]
) -> Forked | subprocess.Popen[bytes]:
    """`python -m module *arguments`, in a session that isn't this process's: forked where that is
    offered, in a new interpreter elsewhere."""
    if not _offers or _offers[-1].withheld:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL if files.input is None else files.input,
            stdout=files.output,
            stderr=files.error,
            pass_fds=files.passed,
            start_new_session=True,
            env=environment,
        )
    offer = _offers[-1]
    if offer.server is None or not offer.server.is_alive:
        offer.server = ForkServer()
    return offer.server.start(module, arguments, files, environment)


def _serve(control: socket.socket) -> list[str]:
    """Fork what is asked for; returns in a child, as which it is to go on: module and arguments."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, MOST_FILES)
        if not data:
            os._exit(0)
        reader, writer = os.pipe()
        if (between := fork_process()) == 0:
            # Whose parent has ended belongs to whoever adopts orphans: the process of the tests.
            if (pid := os.fork()) != 0:
                os.write(writer, str(pid).encode())
                os._exit(0)
            for descriptor in (reader, writer, control.detach()):
                os.close(descriptor)
            command, folder, environment, numbers = json.loads(data)
            return _become(command, folder, environment, numbers, descriptors)
        os.close(writer)
        os.waitpid(between, 0)
        control.send(os.read(reader, 64))
        for descriptor in (reader, *descriptors):
            os.close(descriptor)


def _become(
    command: list[str],
    folder: str,
    environment: Mapping[str, str],
    numbers: Sequence[int],
    descriptors: Sequence[int],
) -> list[str]:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    above = max(numbers) + 1  # so that none is replaced before it has its number
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for number, descriptor in zip(numbers, moved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return command


def main(descriptor: int) -> None:
    load_libraries()
    for name in IMPORTED:
        import_module(name)
    module, *arguments = _serve(socket.socket(fileno=descriptor))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
