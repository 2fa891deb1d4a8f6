"""The exceptions that MegaInfer raises on purpose.

Everything that a user or a peer can cause is a `MegaInferError` whose message names the value at
fault and, where there is one, the fix. An `AssertionError` from this package is a bug in it.
"""

import errno
from collections.abc import Iterator
from itertools import islice
from typing import Any

CITED_CHARACTERS = 80
_SHORT_OF = {
    errno.EMFILE: "too many files are open; allow more (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "there is no memory left; allow more (ulimit -v, the container's limit)",
    errno.EAGAIN: "no more processes or threads may be started; allow more (ulimit -u)",
    errno.ENOSPC: "there is no room left on the disk",
}


class MegaInferError(Exception):
    """Base of all errors below; its text is meant to be read by the person who caused it."""


class ConfigError(MegaInferError):
    """The deployment that was asked for cannot be; raised before any process starts."""


class ModelError(MegaInferError):
    """The model folder or its config.json is not something that we can serve."""


class CheckpointError(ModelError):
    """A weights file is missing or corrupt, or a tensor is missing or misshapen."""


class RequestError(MegaInferError):
    """One request is invalid (HTTP 400); nothing else is touched by it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ProtocolError(MegaInferError):
    """A peer speaks another version or layout of M2N, or sent a malformed message."""


class NodeDied(MegaInferError):
    """A node process ended, or stopped answering, while it was needed."""


class UnsafeFork(MegaInferError):
    """A process that has threads, or uses a device, was to fork: its child might hang or crash."""


class Overloaded(MegaInferError):
    """A bounded queue is full, or a request has waited in it for too long; try again later."""


class RequestTimeout(MegaInferError):
    """A request has taken all the time that one may take; it was ended."""


def shortage(error: BaseException) -> str | None:
    """What the machine has no more of, and how to have more; None where it is something else.

    >>> shortage(OSError(errno.EMFILE, "Too many open files"))
    'too many files are open; allow more (ulimit -n)'
    """
    if isinstance(error, MemoryError):
        return _SHORT_OF[errno.ENOMEM]
    return _SHORT_OF.get(error.errno or 0) if isinstance(error, OSError) else None


def cited(value: Any, most: int = CITED_CHARACTERS) -> str:
    """The beginning of a value as Python writes it. It costs no more than what is shown of it,
    where `repr` would first write all that a client has sent.

    >>> cited({"a": [1, "x"]}), cited("x" * 10**7, 9)
    ("{'a': [1, 'x']}", "'xxxxxxxx")
    """
    text = ""
    for piece in _written(value, most):
        text += piece
        if len(text) >= most:
            break
    return text[:most]


def _written(value: Any, most: int) -> Iterator[str]:
    """Of one kind with `repr`, in pieces."""
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[:most]) if len(value) > most else repr(value)
    elif isinstance(value, dict) and value:
        for place, (name, inner) in enumerate(islice(value.items(), most)):
            yield ", " if place else "{"
            yield from _written(name, most)
            yield ": "
            yield from _written(inner, most)
        yield "}"
    elif isinstance(value, list) and value:
        for place, inner in enumerate(islice(value, most)):
            yield ", " if place else "["
            yield from _written(inner, most)
        yield "]"
    elif isinstance(value, tuple):
        yield from _written(list(value[:most]), most)
    else:
        yield repr(value)
