"""`megainfer agent` and `megainfer serve --agents` as users have them, each host a namespace."""

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

from tests.support.forked import Files, start
from tests.support.namespaces import NetHost, Network
from tests.support.served import Served, run_cli, session_members

PORT = 7300
END_SECONDS = 30.0
READY_SECONDS = 120.0
AS_IT_IS = ("megainfer",)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def write_token(folder: Path, text: str = "0123456789abcdef" * 4) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(0o600)
    return path


class AgentProcess:
    """One on a host, called `name`. `output` is what it has printed so far. program: a module, and
    its arguments before `agent`. more: options."""

    def __init__(
        self,
        network: Network,
        host: NetHost,
        name: str,
        token: Path,
        program: Sequence[str] = AS_IT_IS,
        more: Sequence[str] = (),
    ) -> None:
        options = ("--host", host.address, "--name", name, *more)
        self._start(host.name, program, (network.address, PORT), token, options)

    @classmethod
    def joining(
        cls,
        address: tuple[str, int],
        token: Path,
        *options: str,
        program: Sequence[str] = AS_IT_IS,
    ) -> "AgentProcess":
        """One of this host, called right."""
        agent = cls.__new__(cls)
        agent._start(None, program, address, token, ("--name", "right", *options))
        return agent

    def _start(
        self,
        network: str | None,
        program: Sequence[str],
        join: tuple[str, int],
        token: Path,
        options: Sequence[str],
    ) -> None:
        module, *before = program
        where = ("--join", "{}:{}".format(*join), "--token-file", str(token))
        reader, writer = os.pipe()
        self._printed = open(reader, encoding="utf-8")  # noqa: SIM115  # `_read` closes it
        try:
            arguments = [*before, "agent", *where, *options]
            self.process = start(module, arguments, Files(writer, writer), os.environ, network)
        finally:
            os.close(writer)
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def nodes(self) -> dict[str, int]:
        """Process ids by names such as `expert-0`; of attendants none."""
        named = {comm: pid for pid, comm in session_members(self.process.pid)}
        return {comm.removeprefix("mega-"): pid for comm, pid in named.items() if "mega-" in comm}

    def await_nodes(self, count: int, seconds: float) -> None:
        """Until so many live."""
        deadline = monotonic() + seconds
        while len(self.nodes()) != count:
            assert monotonic() < deadline, f"{self.nodes()} within {seconds} s:\n{self.output}"
            sleep(0.05)  # what others' processes do is told by nobody

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        status = self.process.wait(END_SECONDS)
        self._reader.join(END_SECONDS)
        return status

    def kill(self) -> None:
        """At once, and what is left of it."""
        self.process.kill()
        self.process.wait(END_SECONDS)
        self.await_nodes(0, END_SECONDS)

    def _read(self) -> None:
        with self._printed as lines:
            for line in lines:
                self.output += line


def serve_on(network: Network, token: Path, *args: str, agents: int = 2) -> Served:
    """A server that waits for agents; `wait_until_ready` waits for it."""
    options = ["--agents", str(agents), "--listen-agents", f"{network.address}:{PORT}"]
    return Served([*args, *options, "--token-file", str(token)], wait=False)


def examine(network: Network, token: Path, *args: str, agents: int = 2) -> str:
    """What `megainfer doctor` says of so many agents."""
    where = ("--listen-agents", f"{network.address}:{PORT}", "--token-file", str(token))
    done = run_cli("doctor", "--agents", str(agents), *where, *args, timeout=READY_SECONDS)
    return done.stdout + done.stderr


def wait_until_ready(served: Served, agents: Sequence[AgentProcess]) -> None:
    assert served.wait_until_ready(), "\n".join([served.output, *(a.output for a in agents)])
