"""The exceptions that MegaInfer raises on purpose.

Everything that a user or a peer can cause is a `MegaInferError` whose message names the value at
fault and, where there is one, the fix. An `AssertionError` from this package is a bug in it.
"""

import errno

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
