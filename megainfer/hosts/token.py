"""The token that agents and the supervisor share, and what is derived of it."""

import hmac
import stat
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.small_file import read_small_text

LEAST_CHARACTERS = 32
_MOST_BYTES = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_token(path: Path) -> bytes:
    """The content of the file, without white space around it.

    Raises ConfigError where it can't be read, could be guessed, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        text = read_small_text(path, _MOST_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} can't be read: {error}") from error
    if mode & _OTHERS:
        raise ConfigError(
            f"--token-file {path} is open to others (mode {stat.S_IMODE(mode):o}); chmod 600 it"
        )
    if len(text) < LEAST_CHARACTERS:
        raise ConfigError(
            f"--token-file {path} has {len(text)} characters; make one of at least "
            f"{LEAST_CHARACTERS}, as `openssl rand -hex 32` does"
        )
    return text.encode()


def m2n_key(token: bytes, instance: str) -> str:
    """The key by which the nodes of an instance know each other on the road `dist`: each host makes
    it of the token, so that it is never sent. instance: `Plan.token`."""
    return hmac.digest(token, b"megainfer m2n key " + instance.encode(), "sha256").hex()
