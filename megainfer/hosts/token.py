"""The token that agents and the supervisor share, and what is derived of it."""

import hmac
import os
import secrets
import stat
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.small_file import read_small_text

LEAST_CHARACTERS = 32
VARIABLE = "MEGAINFER_AGENT_TOKEN"
"""Of the environment, where there is no file: a command line could be read by others."""
_MOST_BYTES = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_token() -> bytes:
    """A new one, that nobody can guess."""
    return secrets.token_hex(32).encode()


def find_token(path: Path | None) -> bytes | None:
    """The file's, else the environment's; None where there is neither.

    What this process starts doesn't find it in the environment any more. Raises ConfigError as
    `read_token`.
    """
    told = os.environ.pop(VARIABLE, None)
    if path is not None:
        return read_token(path)
    return None if told is None else _checked(told.strip(), f"the token in {VARIABLE}")


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
    return _checked(text, f"--token-file {path}")


def _checked(text: str, name: str) -> bytes:
    if len(text) < LEAST_CHARACTERS:
        raise ConfigError(
            f"{name} has {len(text)} characters; make one of at least {LEAST_CHARACTERS}, as "
            "`openssl rand -hex 32` does"
        )
    return text.encode()


def m2n_key(token: bytes, instance: str) -> str:
    """The key by which the nodes of an instance know each other on the road `dist`: each host makes
    it of the token, so that it is never sent. instance: `Plan.token`."""
    return hmac.digest(token, b"megainfer m2n key " + instance.encode(), "sha256").hex()
