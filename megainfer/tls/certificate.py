"""A certificate and its key, as options name them."""

import ssl
from pathlib import Path

from megainfer.errors import ConfigError


def load_certificate(
    context: ssl.SSLContext, certificate: Path, private_key: Path, flags: tuple[str, str]
) -> None:
    """flags: the options that name the two. Raises ConfigError where they can't be used."""
    try:
        # Without a password of its own OpenSSL would ask a terminal for one.
        context.load_cert_chain(certificate, private_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{flags[0]} {certificate} with {flags[1]} {private_key} can't be used: {error}"
        ) from error
