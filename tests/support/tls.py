"""Certificates for TLS between hosts, of an authority of their own."""

from pathlib import Path

import trustme

from megainfer.tls.peers import TlsFiles


def issued(folder: Path, authority: trustme.CA, trusted: trustme.CA | None = None) -> TlsFiles:
    """A host's files, in that folder. trusted: whom it believes, in place of `authority`, whose its
    certificate is."""
    files = TlsFiles(folder / "host.pem", folder / "host.key", folder / "authority.pem")
    own = authority.issue_cert("a-host.example")
    own.cert_chain_pems[0].write_to_path(files.certificate)
    own.private_key_pem.write_to_path(files.private_key)
    (trusted or authority).cert_pem.write_to_path(files.authority)
    return files
