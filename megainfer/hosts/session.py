"""A conversation between two hosts as bytes: proved by a token, then numbered and sealed.

    caller                               listener
                                   <--   PREFIX: magic, version, nonce
    PREFIX, PROOF: HMAC            -->   compares
    compares                       <--   a byte: 0 and PROOF, or 1: the token is another
    frames                         <->   frames: length, body, HMAC

Each HMAC is SHA-256 (RFC 2104). Those of the proofs are with the token, over the side's name and
both nonces; those of frames with a key that is made of both nonces, one a direction, over the
frame's number and its body: what was said in another session, or before, or the other way, is
taken for nothing. Bodies are in the clear. No clock and no socket is in here.
"""

import hmac
import secrets
import struct
from enum import Enum

from megainfer.errors import ProtocolError

MAGIC = b"MEGAHOST"
VERSION = 1
MAX_BODY_BYTES = 96 * 2**20
"""More than any message between a front end and a node may have (`frontend.node_socket`)."""
_PREFIX = struct.Struct("<8sI32s")
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_DIGEST_BYTES = 32
_YES, _NO = b"\0", b"\1"
_CONTEXT = b"megainfer hosts 1 "


class _Stage(Enum):
    PREFIX = 0
    PROOF = 1
    OPEN = 2


class Session:
    """One side. calls: whether it is the one that has connected. `outgoing` is what is to be sent;
    whoever sends it takes it from there."""

    def __init__(self, token: bytes, calls: bool) -> None:
        self.outgoing = bytearray()
        self._token = token
        self._calls = calls
        self._nonce = secrets.token_bytes(32)
        self._theirs = b""
        self._stage = _Stage.PREFIX
        self._incoming = bytearray()
        self._keys = b"", b""  # of what is sent, of what comes
        self._sent = self._received = 0
        if not calls:
            self.outgoing += _PREFIX.pack(MAGIC, VERSION, self._nonce)

    @property
    def is_open(self) -> bool:
        """Whether both have proved themselves."""
        return self._stage is _Stage.OPEN

    def seal(self, body: bytes) -> None:
        """Send a frame; once it is open. Raises ProtocolError where it is too long."""
        assert self.is_open, "nothing is said before both have proved themselves"
        if len(body) > MAX_BODY_BYTES:
            raise ProtocolError(f"{len(body)} bytes; at most {MAX_BODY_BYTES} are sent at once")
        digest = hmac.digest(self._keys[0], _NUMBER.pack(self._sent) + body, "sha256")
        self._sent += 1
        self.outgoing += _LENGTH.pack(len(body)) + body + digest

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole with this. Raises ProtocolError for what no peer of this
        version and token says; `outgoing` may then still hold why."""
        self._incoming += data
        if self._stage is _Stage.PREFIX and not self._read_prefix():
            return []
        if self._stage is _Stage.PROOF and not self._read_proof():
            return []
        bodies = []
        while (body := self._read_frame()) is not None:
            bodies.append(body)
        return bodies

    def _read_prefix(self) -> bool:
        found = bytes(self._incoming[: _PREFIX.size])
        if not MAGIC.startswith(found[: len(MAGIC)]):
            raise ProtocolError(f"it begins with {found[:8]!r}, which no MegaInfer of a host does")
        if len(found) < _PREFIX.size:
            return False
        del self._incoming[: _PREFIX.size]
        _, version, self._theirs = _PREFIX.unpack(found)
        if self._calls:
            self.outgoing += _PREFIX.pack(MAGIC, VERSION, self._nonce)
        if version != VERSION:
            raise ProtocolError(f"it speaks version {version} between hosts, this is {VERSION}")
        if self._calls:
            self.outgoing += self._proof(calls=True)
        self._stage = _Stage.PROOF
        return True

    def _read_proof(self) -> bool:
        verdict = self._incoming[:1] if self._calls else _YES
        if verdict == _NO:
            raise ProtocolError("it refuses this token: use the token file that it has")
        size = len(_YES) * self._calls + _DIGEST_BYTES
        if len(self._incoming) < size:
            return False
        found = bytes(self._incoming[size - _DIGEST_BYTES : size])
        del self._incoming[:size]
        if not hmac.compare_digest(found, self._proof(calls=not self._calls)):
            self.outgoing += _NO * (not self._calls)
            raise ProtocolError("it has not proved that it has this token")
        if not self._calls:
            self.outgoing += _YES + self._proof(calls=False)
        own, theirs = self._key(self._calls), self._key(not self._calls)
        self._keys = own, theirs
        self._stage = _Stage.OPEN
        return True

    def _read_frame(self) -> bytes | None:
        if len(self._incoming) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._incoming)
        if length > MAX_BODY_BYTES:
            raise ProtocolError(f"a frame of {length} bytes; at most {MAX_BODY_BYTES} are taken")
        end = _LENGTH.size + length
        if len(self._incoming) < end + _DIGEST_BYTES:
            return None
        body = bytes(self._incoming[_LENGTH.size : end])
        digest = bytes(self._incoming[end : end + _DIGEST_BYTES])
        del self._incoming[: end + _DIGEST_BYTES]
        numbered = _NUMBER.pack(self._received) + body
        self._received += 1
        if not hmac.compare_digest(digest, hmac.digest(self._keys[1], numbered, "sha256")):
            raise ProtocolError("a frame that was changed on its way, or said by somebody else")
        return body

    def _proof(self, calls: bool) -> bytes:
        return self._digest(b"CALLER " if calls else b"LISTENER ")

    def _key(self, calls: bool) -> bytes:
        """Of what this side sends."""
        return self._digest(b"FROM CALLER " if calls else b"FROM LISTENER ")

    def _digest(self, purpose: bytes) -> bytes:
        caller, listener = (
            (self._nonce, self._theirs) if self._calls else (self._theirs, self._nonce)
        )
        return hmac.digest(self._token, _CONTEXT + purpose + listener + caller, "sha256")
