"""The other API servers of an instance, asked for what each counts.

Any of them may be the one that a scraper or a browser reaches, so each answers for all. They listen
on abstract sockets; of a process of another user nothing is taken, and none is told anything.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from megainfer.m2n.host.handshake import peer_uid

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0
"""How long another one may take; one that is being started again is left out."""


@dataclass(frozen=True, slots=True)
class Address:
    """own: this server's number, of `count`. name: of the abstract socket of each."""

    own: int
    count: int
    name: Callable[[int], str]


class Siblings:
    """`open`, then `ask`, at last `close`. answers: what this one tells others, by what they ask
    for: a word."""

    def __init__(self, address: Address, answers: Mapping[str, Callable[[], bytes]] = {}) -> None:
        self.answers = dict(answers)
        self._address = address
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Be there for the others, if there are any."""
        if self._address.count > 1:
            path = _path(self._address.name(self._address.own))
            self._server = await asyncio.start_unix_server(self._tell, path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def ask(self, what: str) -> dict[int, bytes]:
        """What each of the others tells, by its number, of those that answer in time."""
        others = [server for server in range(self._address.count) if server != self._address.own]
        answers = await asyncio.gather(*(self._ask(server, what) for server in others))
        return {server: a for server, a in zip(others, answers, strict=True) if a is not None}

    async def _ask(self, server: int, what: str) -> bytes | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._read(server, what)
        except (OSError, TimeoutError) as error:
            log.info("API server %d doesn't tell what it counts: %s", server, error or "too late")
            return None

    async def _read(self, server: int, what: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(_path(self._address.name(server)))
        try:
            if not _is_ours(writer):
                raise OSError("it runs as another user")
            writer.write(f"{what}\n".encode())
            return await reader.read()
        finally:
            writer.close()

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _is_ours(writer):
                async with asyncio.timeout(ASK_SECONDS):
                    writer.write(self._answer(await reader.readline()))
                    await writer.drain()
        except (OSError, TimeoutError):  # it has gone, or asks for nothing
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, question: bytes) -> bytes:
        answer = self.answers.get(question.decode(errors="replace").strip())
        return b"" if answer is None else answer()


def alone() -> Address:
    """Of an instance with one API server."""
    return Address(0, 1, str)


def _path(name: str) -> str:
    return f"\0{name}"


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    connection: socket.socket = writer.get_extra_info("socket")
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        return peer_uid(own) == os.geteuid()
