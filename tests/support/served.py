"""`megainfer serve` as its user has it: a process of its own, on a free port."""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from megainfer import LLM
from tests.support.forked import Files, start

READY_SECONDS = 90.0
END_SECONDS = 30.0
CONTEXT = 8192  # tokens, of a model whose streams have to last
ENDLESS = 8000  # tokens: seconds of the small model, even where a test is kept waiting meanwhile


class Served:
    """A server that has printed `until`. `output` is all that it has printed so far.

    program: the module that is `megainfer`, or runs it after the arguments `before`. environment:
    beside this process's own.
    wait: until it has printed that; else `wait_until_ready` does.
    """

    def __init__(
        self,
        args: Sequence[str],
        until: str = "Ctrl-C ends it",
        program: str = "megainfer",
        environment: Mapping[str, str] = {},
        wait: bool = True,
        before: Sequence[str] = (),
    ) -> None:
        reader, writer = os.pipe()
        self._printed = open(reader, encoding="utf-8")  # noqa: SIM115  # `_read` closes it
        try:
            self.process = start(  # in a session of its own, so that what is left can be found
                program,
                [*before, "serve", "--port", "0", *args],
                Files(writer, writer),
                {**os.environ, "COLUMNS": "200", **environment},
            )
        finally:
            os.close(writer)
        self._lines = list[str]()
        self._until = until
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            ready = self.wait_until_ready()
            assert ready, f"it ended before it said {until!r}:\n{self.output}"

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> bool:
        """Whether it has printed `until`; False: it has ended instead."""
        assert self._ready.wait(seconds), f"not ready:\n{self.output}"
        return self._until in self.output

    def _read(self) -> None:
        with self._printed as lines:
            for line in lines:
                self._lines.append(line)
                if self._until in line:
                    self._ready.set()
        self._ready.set()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    @property
    def url(self) -> str:
        found = re.search(r"https?://[\d.]+:\d+", self.output)
        assert found, self.output
        return found[0]

    def node(self, name: str) -> int:
        """The process id of a node, such as `attent-0` or `expert-1`, by its process name."""
        (pid,) = [pid for pid, comm in self.members() if comm == f"mega-{name}"]
        return pid

    def members(self) -> list[tuple[int, str]]:
        """(pid, name) of every living process of this server's session."""
        return session_members(self.process.pid)

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        status = self.process.wait(END_SECONDS)
        self._reader.join(END_SECONDS)
        return status

    def sockets(self) -> set[str]:
        """Names of the abstract sockets that its processes hold."""
        held = {held for pid, _ in self.members() for held in open_files(pid)}
        return {name for inode, name in abstract_sockets() if f"socket:[{inode}]" in held}

    def kill(self) -> None:
        """Whatever is left of it."""
        for pid, _ in self.members():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(END_SECONDS)


def open_files(pid: int) -> Iterator[str]:
    """What this process's descriptors are of."""
    # The process may end while we look, and a connection be closed.
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                yield os.readlink(link)


def abstract_sockets() -> set[tuple[str, str]]:
    """(inode, name) of every socket of MegaInfer's on this machine."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {(row[6], row[7]) for row in rows if len(row) > 7 and "@megainfer" in row[7]}


def session_members(session: int) -> list[tuple[int, str]]:
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pid = int(folder.name)
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if os.getsid(pid) == session and state != "Z":
                    members.append((pid, (folder / "comm").read_text().strip()))
            except (OSError, ProcessLookupError):
                continue  # it ended while we looked
    return members


def pid_of(llm: LLM, name: str) -> int:
    """Of its node of this name."""
    supervisor = llm._local.process.pid
    (pid,) = [
        pid
        for pid, comm in session_members(os.getsid(supervisor))
        if comm == f"mega-{name}" and _parent(pid) == supervisor
    ]
    return pid


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def serving(*args: str) -> Iterator[Served]:
    """A server that is ready; whatever the test leaves of it is killed."""
    served = Served(args)
    try:
        yield served
    finally:
        served.kill()


def run_cli(*args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return run_module("megainfer", args, {**os.environ, "COLUMNS": "200"}, timeout)


def run_module(
    module: str, args: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python -m module *args` to its end, started as `forked.start` does. Raises
    subprocess.TimeoutExpired after so many seconds."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:
        process = start(module, args, Files(output.fileno(), error.fileno()), environment)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait(END_SECONDS)
            raise
        output.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(args, status, output.read(), error.read())


def answer(served: Served, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, of so many tokens."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "return_token_ids": True,
    }
    said = httpx.post(f"{served.url}/v1/completions", json=body, timeout=90)
    assert said.status_code == 200, said.text
    ids: list[int] = said.json()["choices"][0]["token_ids"]
    return ids


def stream(served: Served, prompt: list[int], tokens: int, **more: Any) -> Iterator[dict[str, Any]]:
    """The events of a streamed completion, parsed; `[DONE]` ends it."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        **more,
    }
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def streamed(
    served: Served, prompt: list[int], tokens: int, meanwhile: Callable[[], object]
) -> list[int]:
    """The tokens of a streamed completion; `meanwhile` is called once it has begun."""
    events = stream(served, prompt, tokens, temperature=0, return_token_ids=True)
    told = tokens_of(next(events))
    meanwhile()
    for event in events:
        told += tokens_of(event)
    return told


def tokens_of(event: dict[str, Any]) -> list[int]:
    """Of one event, which may be an error's."""
    ids: list[int] = event["choices"][0].get("token_ids") or [] if "choices" in event else []
    return ids
