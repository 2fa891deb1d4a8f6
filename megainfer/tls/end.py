"""One end of a TLS connection as bytes. No socket is in here, and nothing that waits."""

import ssl

from megainfer.errors import ProtocolError

_PIECE_BYTES = 1 << 18
WANTED = "it wants TLS, which this side has not: give both sides the same --tls-… options"
UNSPOKEN = "it speaks no TLS, which this side wants: give both sides the same --tls-… options"
MAYBE = "it may be that one of the two wants TLS and the other has no --tls-… options"
_REASONS = {
    "WRONG_VERSION_NUMBER": UNSPOKEN,
    "HTTP_REQUEST": UNSPOKEN,
    "TLSV1_ALERT_UNKNOWN_CA": "it refuses this side's certificate, which isn't of its --tls-cafile",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and this side has shown none",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "to it this side's certificate has expired",
}
"""What OpenSSL's own words mean here."""


def wants_tls(first: bytes) -> bool:
    """Whether what somebody says first is the beginning of TLS."""
    return first.startswith(b"\x16\x03")


class TlsEnd:
    """calls: whether this side has connected. `outgoing` is what is to be sent; whoever sends it
    takes it from there. One thread at a time."""

    def __init__(self, context: ssl.SSLContext, calls: bool) -> None:
        self.outgoing = bytearray()
        self.is_open = False
        self._unsaid = bytearray()  # until both have shown their certificates
        self._from_peer, self._to_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._from_peer, self._to_peer, server_side=not calls)
        if calls:
            self._go_on()

    def seal(self, data: bytes | bytearray) -> None:
        """Have it sent. Nothing is until both have shown their certificates."""
        if self.is_open:
            self._write(data)
        else:
            self._unsaid += data

    def feed(self, data: bytes) -> bytes:
        """What is said in what has come. Raises ProtocolError for no TLS, or a peer of another
        authority; `outgoing` may then still hold why."""
        self._from_peer.write(data)
        return self._go_on()

    def _go_on(self) -> bytes:
        said = bytearray()
        try:
            if not self.is_open:
                self._tls.do_handshake()
                self.is_open = True
                self._write(self._unsaid)
                self._unsaid.clear()
            while piece := self._tls.read(_PIECE_BYTES):
                said += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise ProtocolError(_reason(error)) from error
        finally:
            self.outgoing += self._to_peer.read()
        return bytes(said)

    def _write(self, data: bytes | bytearray) -> None:
        with memoryview(data) as whole:
            for begin in range(0, len(whole), _PIECE_BYTES):  # memory for a piece, not for all
                self._tls.write(whole[begin : begin + _PIECE_BYTES])
                self.outgoing += self._to_peer.read()


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't good by this side's --tls-cafile: {error.verify_message}"
    return _REASONS.get(error.reason or "", f"TLS with it has failed: {error}")
