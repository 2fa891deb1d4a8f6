"""TLS between the hosts of an instance: each has a certificate, all of one authority.

Names in certificates aren't looked at, since hosts are known by addresses that change: whoever has
a certificate of the authority is a host, so the authority has to be the instance's own.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.tls.certificate import load_certificate
from megainfer.tls.end import TlsEnd

CERTIFICATE, PRIVATE_KEY, AUTHORITY = "--tls-certfile", "--tls-keyfile", "--tls-cafile"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Of one host, in PEM: its certificate, the key of that, and the authority's certificate."""

    certificate: Path
    private_key: Path
    authority: Path

    @classmethod
    def chosen(
        cls, certificate: Path | None, private_key: Path | None, authority: Path | None
    ) -> "TlsFiles | None":
        """What options name; None: no TLS. Raises ConfigError where one is missing."""
        given = {CERTIFICATE: certificate, PRIVATE_KEY: private_key, AUTHORITY: authority}
        missing = [flag for flag, path in given.items() if path is None]
        if len(missing) == len(given):
            return None
        if certificate is None or private_key is None or authority is None:
            raise ConfigError(
                f"TLS between hosts needs a certificate, its key and the authority of both ends: "
                f"give {' and '.join(missing)} as well"
            )
        return cls(*(path.absolute() for path in (certificate, private_key, authority)))

    def options(self) -> list[str]:
        """As a command line has them."""
        return [
            *(CERTIFICATE, str(self.certificate)),
            *(PRIVATE_KEY, str(self.private_key)),
            *(AUTHORITY, str(self.authority)),
        ]


class PeerTls:
    """What a process needs for it, read once. Raises ConfigError where the files can't be used."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._listens = _context(ssl.PROTOCOL_TLS_SERVER, files)
        self._listens.num_tickets = 0  # sessions aren't resumed, so nothing is said of them
        self._calls = _context(ssl.PROTOCOL_TLS_CLIENT, files)

    def end(self, calls: bool) -> TlsEnd:
        """Of a new connection. calls: whether this is the side that has connected."""
        return TlsEnd(self._calls if calls else self._listens, calls)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    load_certificate(context, files.certificate, files.private_key, (CERTIFICATE, PRIVATE_KEY))
    try:
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{AUTHORITY} {files.authority} can't be used: {error}") from error
    return context
