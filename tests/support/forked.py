"""Programs forked from a process that has imported what they do: a new interpreter takes seconds of
processor time for torch, the command line and a web framework, each time.

    with offered():
        process = start("megainfer", ["serve", ...], Files(output=1, error=1), os.environ)

A program finds what a new interpreter would give it, beside having imported more than it may need;
see tests/support/fork_server.py. Tests of how programs start are marked `fresh`, and have new
interpreters.
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from tests.support.processes import adopt_orphans

ROOT = Path(__file__).parents[2]
ANSWER_SECONDS = 300.0
"""Importing it all takes five, but this machine may be busy with others."""
REQUEST_BYTES, MOST_FILES = 1 << 17, 8
TRAINING = ("transformers.models.mixtral.modeling_mixtral", "megainfer.commands.rl.train")
"""What programs import that train, which takes as long again as all else."""


@dataclass(frozen=True)
class Files:
    """Descriptors of a program. passed: those that it has under the numbers that they have here."""

    output: int
    error: int
    input: int | None = None  # nothing to read
    passed: Sequence[int] = ()


def own_terminal() -> None:
    """The terminal that input comes from becomes that of this process, the first of a session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


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
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = 0  # only the process of the tests hears how it has ended
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)


class Home:
    """The process that is forked, as its programs know it: by the address where it listens."""

    def __init__(self, address: bytes) -> None:
        self._address = address

    @property
    def is_alive(self) -> bool:
        """Its programs needn't ask."""
        return True

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        files: Files,
        environment: Mapping[str, str],
        network: str | None = None,
    ) -> Forked:
        with (
            open(os.devnull, "rb") as nothing,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking,
        ):
            asking.settimeout(ANSWER_SECONDS)
            asking.connect(self._address)
            first = nothing.fileno() if files.input is None else files.input
            descriptors = [first, files.output, files.error, *files.passed]
            numbers = [0, 1, 2, *files.passed]
            request = [network, [module, *arguments], os.getcwd(), dict(environment), numbers]
            socket.send_fds(asking, [json.dumps(request).encode()], descriptors)
            answer = asking.recv(64)
        assert answer, "the process that programs are forked from has ended"
        return Forked(int(answer))

    def close(self) -> None:
        """Its owner does."""


class ForkServer(Home):
    """The process that is forked, from outside. Its programs become children of this process.

    imports: beside what all need. origin: what it is forked from itself.
    """

    def __init__(self, imports: Sequence[str] = (), origin: Home | None = None) -> None:
        adopt_orphans()
        self._life, theirs = socket.socketpair()  # it ends when this end is closed
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(b"")  # anywhere
            listener.listen()
            super().__init__(listener.getsockname())
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            passed = [listener.fileno(), theirs.fileno()]
            # In a session of its own, or an interrupt of the tests would end it first.
            self._process = (interpreted if origin is None else origin.start)(
                "tests.support.fork_server",
                [*map(str, passed), *imports],
                Files(1, 2, passed=passed),
                {**os.environ, "PYTHONPATH": path},
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """It holds nothing that has to be ended in order."""
        self._life.close()
        self._process.kill()
        self._process.wait()


@dataclass
class _Offer:
    """servers: by what they import beside what all do."""

    servers: dict[Sequence[str], Home] = field(default_factory=dict)
    imports: Sequence[str] = ()
    withheld: bool = False
    _starting: RLock = field(default_factory=RLock)

    def server(self, imports: Sequence[str]) -> Home:
        """Started where there is none."""
        with self._starting:
            known = self.servers.get(imports)
            if known is None or not known.is_alive:
                known = ForkServer(imports, self.server(()) if imports else None)
                self.servers[imports] = known
            return known


_offers: list[_Offer] = []


@contextmanager
def offered() -> Iterator[None]:
    """Programs are forked meanwhile; the first one that is starts the process that they come of."""
    _offers.append(_Offer())
    try:
        yield
    finally:
        for server in _offers.pop().servers.values():
            server.close()


def offer_of(home: Home) -> None:
    """In a program that was forked: those that it starts are forked from the same process."""
    _offers.append(_Offer({(): home}))


@contextmanager
def withheld(is_withheld: bool) -> Iterator[None]:
    """Whether programs have new interpreters meanwhile, even where others are forked."""
    offer = _offers[-1]
    before, offer.withheld = offer.withheld, is_withheld
    try:
        yield
    finally:
        offer.withheld = before


@contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Programs come of a process that has imported these, too, where they are forked."""
    offer = _offers[-1]
    before, offer.imports = offer.imports, modules
    try:
        yield
    finally:
        offer.imports = before


def interpreted(
    module: str,
    arguments: Sequence[str],
    files: Files,
    environment: Mapping[str, str],
    network: str | None = None,
) -> subprocess.Popen[bytes]:
    """What `start` says, in a new interpreter."""
    there = () if network is None else ("ip", "netns", "exec", network)
    return subprocess.Popen(
        [*there, sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL if files.input is None else files.input,
        stdout=files.output,
        stderr=files.error,
        pass_fds=files.passed,
        start_new_session=True,
        env=environment,
        preexec_fn=own_terminal if files.input is not None and os.isatty(files.input) else None,
    )


def start(
    module: str,
    arguments: Sequence[str],
    files: Files,
    environment: Mapping[str, str],
    network: str | None = None,
) -> Forked | subprocess.Popen[bytes]:
    """`python -m module *arguments`, in a session that isn't this process's: forked where that is
    offered, in a new interpreter elsewhere. network: the namespace that it is in, None: this
    process's."""
    if not _offers or _offers[-1].withheld:
        return interpreted(module, arguments, files, environment, network)
    server = _offers[-1].server(_offers[-1].imports)
    return server.start(module, arguments, files, environment, network)
