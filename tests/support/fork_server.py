"""The process that programs of tests are forked from; see tests/support/forked.py.

    python -m tests.support.fork_server LISTENER LIFE MODULE...

LISTENER and LIFE are descriptors: of a socket that requests come to, and of one whose other end is
closed when this is to end. It has no other threads and has computed nothing, so that a program of
it differs from one of a new interpreter in no more than having imported more than it may need.
"""

import atexit
import fcntl
import gc
import json
import os
import runpy
import select
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from megainfer.supervise.child import fork_process
from megainfer.supervise.forking.libraries import load_libraries
from tests.support.forked import MOST_FILES, REQUEST_BYTES, Home, offer_of, own_terminal
from tests.support.forked_engine import fork_engines
from tests.support.processes import enter_network

IMPORTED = (
    *("megainfer.cli", "megainfer.commands.bench.serving", "megainfer.commands.bench.offline"),
    *("megainfer.commands.conversation", "megainfer.commands.chat_client", "megainfer.llm"),
    *("megainfer.model_folder.deployment", "megainfer.launch.expectation"),
    *("megainfer.agent.agent", "megainfer.agent.attendant", "megainfer.compute.cpu.backend"),
    *("megainfer.m2n.shm.ports", "megainfer.m2n.slotted.opening", "megainfer.m2n.dist.ports"),
    *("megainfer.supervise.engine_process", "megainfer.attention_node.process"),
    *("megainfer.structured.compiler", "megainfer.launch.ranks.links", "uvicorn.lifespan.off"),
    *("megainfer.expert_node.process", "megainfer.colocated.process", "server.process", "uvicorn"),
)


def _serve(listener: socket.socket, life: socket.socket) -> list[str]:
    """Fork what is asked for; returns in a child, as which it is to go on: module and arguments."""
    home = Home(listener.getsockname())
    while True:
        if life in select.select([listener, life], [], [])[0]:
            os._exit(0)
        asking, _ = listener.accept()
        data, descriptors, _, _ = socket.recv_fds(asking, REQUEST_BYTES, MOST_FILES)
        reader, writer = os.pipe()
        if (between := fork_process()) == 0:
            # Whose parent has ended belongs to whoever adopts orphans: the process of the tests.
            if (pid := os.fork()) != 0:
                os.write(writer, str(pid).encode())
                os._exit(0)
            for own in (listener, life, asking):
                own.close()
            for descriptor in (reader, writer):
                os.close(descriptor)
            network, command, folder, environment, numbers = json.loads(data)
            if network is None:
                offer_of(home)
            else:
                enter_network(network)  # where nobody hears of the other's sockets
            return _become(command, folder, environment, numbers, descriptors)
        os.close(writer)
        os.waitpid(between, 0)
        with asking:
            asking.send(os.read(reader, 64))
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
    if os.isatty(0):
        own_terminal()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as of terminals
    return command


def main(listener: int, life: int, *imports: str) -> None:
    load_libraries()
    for name in (*IMPORTED, *imports):
        import_module(name)
    gc.collect()
    gc.freeze()  # or collections in programs would copy, by looking at it, what all share
    fork_engines()
    module, *arguments = _serve(socket.socket(fileno=listener), socket.socket(fileno=life))
    sys.argv[1:] = arguments
    status: str | int | None = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    _leave(status)


def _leave(status: str | int | None) -> NoReturn:
    """End as an interpreter does, but for taking apart what all share: that would copy it first,
    and take longer than many a program."""
    if isinstance(status, str):
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for other threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)  # of which an interpreter has its own words
    os._exit((status or 0) & 0xFF)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
