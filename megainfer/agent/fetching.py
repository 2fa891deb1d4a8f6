"""Weights that this host lacks, copied from another host of the instance that has them.

A file comes under another name, and gets its own when it is whole: nobody ever reads half of one.
Of several nodes of this host that start at once, one copies, and the others wait for it.
"""

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TypeVar

from megainfer.agent.giving import MOST_BYTES, PATIENCE_SECONDS
from megainfer.checkpoint.headers import INDEX
from megainfer.checkpoint.lacking import lacking
from megainfer.config import format_bytes
from megainfer.errors import CheckpointError, MegaInferError, NodeDied, ProtocolError
from megainfer.gguf.files import SUFFIX
from megainfer.hosts.wire import Wire, poll
from megainfer.messages.hosts import (
    FromAttendant,
    ListWeights,
    Peer,
    ReadWeights,
    Refused,
    WeightsListed,
    WeightsRead,
    from_attendant_decoder,
)
from megainfer.messages.message import Message
from megainfer.tls.peers import PeerTls

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 15.0
"""For each piece."""
WAIT_SECONDS = 3600.0
"""For another node of this host that copies."""
IN_FLIGHT = 4
_LOOK_SECONDS = 0.1
Answer = TypeVar("Answer", bound=Message)


def _is_of_weights(name: str) -> bool:
    """Whether a file of this name, which another host has told, may be written here."""
    path = Path(name)
    return path.name == name and (name == INDEX or path.suffix in (".safetensors", SUFFIX))


class Fetching:
    """peers: who may have them. token, tls: of the connections there. turn: called time and again,
    to hear whoever waits meanwhile. told: hears, in words, how it goes."""

    def __init__(
        self,
        peers: Sequence[Peer],
        token: bytes,
        tls: PeerTls | None,
        turn: Callable[[], None],
        told: Callable[[str], None],
    ) -> None:
        self._peers = peers
        self._token, self._tls = token, tls
        self._turn, self._told = turn, told

    def bring(self, folder: Path, plan: bytes) -> None:
        """Into this folder what it lacks. Where nobody gives it, it is said, and whoever reads the
        folder finds what is there. Raises what `turn` does."""
        if lacking(folder) == set():
            return
        try:
            with self._alone(folder):
                self._bring(folder, plan)
        except (OSError, CheckpointError) as error:
            self._told(f"can't copy weights into {folder}: {error}; going by what is there")

    def _bring(self, folder: Path, plan: bytes) -> None:
        for peer in self._peers:
            names = lacking(folder)  # another node may have brought them meanwhile
            if names == set():
                return
            try:
                self._from_peer(peer, folder, names, plan)
            except MegaInferError as error:
                self._told(f"no weights from host {peer.host}: {error}")
        if lacking(folder) != set():
            self._told(f"no host gives the weights that {folder} lacks; going by what is there")

    def _from_peer(self, peer: Peer, folder: Path, names: set[str] | None, plan: bytes) -> None:
        with self._wire_to(peer) as wire:
            sizes = self._asked(wire, ListWeights(plan), WeightsListed).sizes
            given = set(filter(_is_of_weights, sizes))
            wanted = given if names is None else names & given
            if not wanted:
                raise CheckpointError("it hasn't them either")
            size = sum(sizes[name] for name in wanted)
            total, free = format_bytes(size), shutil.disk_usage(folder).free
            if size > free:
                raise CheckpointError(f"it gives {total}, and {folder} has room for {free} bytes")
            began = monotonic()
            self._told(f"copying {len(wanted)} files with weights, {total}, from host {peer.host}")
            for name in sorted(wanted, key=lambda name: (name == INDEX, name)):
                self._copy(wire, folder / name, sizes[name])
            self._told(f"copied {total} from host {peer.host} in {monotonic() - began:.1f} s")

    def _copy(self, wire: Wire[FromAttendant], path: Path, size: int) -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                for piece in self._pieces(wire, path.name, size):
                    file.write(piece)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _pieces(self, wire: Wire[FromAttendant], name: str, size: int) -> Iterator[bytes]:
        """In order; several are asked for before the first has come."""
        asked = 0
        for at in range(0, size, MOST_BYTES):
            while asked < min(size, at + IN_FLIGHT * MOST_BYTES):
                wire.send(ReadWeights(name, asked, MOST_BYTES))
                asked += MOST_BYTES
            data = self._next(wire, WeightsRead).data
            if len(data) != min(MOST_BYTES, size - at):
                raise CheckpointError(f"{name} has changed there while it was read")
            yield data

    def _asked(self, wire: Wire[FromAttendant], question: Message, kind: type[Answer]) -> Answer:
        wire.send(question)
        return self._next(wire, kind)

    def _next(self, wire: Wire[FromAttendant], kind: type[Answer]) -> Answer:
        deadline = monotonic() + ANSWER_SECONDS
        while not self._heard:
            self._turn()
            self._heard += wire.pump()
            if not self._heard:
                if monotonic() > deadline:
                    raise NodeDied(f"it has not answered within {ANSWER_SECONDS:g} s")
                poll([wire], _LOOK_SECONDS)
        said = self._heard.pop(0)
        if isinstance(said, Refused):
            raise ProtocolError(said.reason)
        if not isinstance(said, kind):
            raise ProtocolError(f"it said {type(said).__name__}, not {kind.__name__}")
        return said

    @contextmanager
    def _wire_to(self, peer: Peer) -> Iterator[Wire[FromAttendant]]:
        """Raises NodeDied."""
        try:
            address = peer.address, peer.port
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise NodeDied(f"it can't be reached: {error}") from error
        self._heard: list[FromAttendant] = []
        wire = Wire(
            *(connection, self._token, from_attendant_decoder, f"host {peer.host}", True),
            *(PATIENCE_SECONDS,),
            tls=self._tls,
        )
        try:
            yield wire
        finally:
            wire.close()

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Of all nodes of this host. Raises OSError where there is no such folder,
        CheckpointError where another takes too long."""
        deadline = monotonic() + WAIT_SECONDS
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not _locked(lock):
                if monotonic() > deadline:
                    raise CheckpointError(f"another node still does, after {WAIT_SECONDS:g} s")
                self._turn()
                poll([], _LOOK_SECONDS)
            yield
        finally:
            os.close(lock)


def _locked(folder: int) -> bool:
    """Whether it is now this process's. Raises OSError."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
