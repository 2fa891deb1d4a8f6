"""Generation stands still for a while, as a front end asks for."""

from enum import StrEnum

from megainfer.messages.message import Message


class PauseMode(StrEnum):
    """What becomes of the requests that there are; new ones wait in any case.

    ABORT: they end. WAIT: they go on to their end. KEEP: they stand still, and go on afterwards.
    """

    ABORT = "abort"
    WAIT = "wait"
    KEEP = "keep"


class SetPause(Message, frozen=True):
    """From a front end, then to every attention node. mode: None ends the pause. clear_cache:
    whether prefixes are forgotten, where no request is left to use them."""

    ticket: int
    mode: PauseMode | None
    clear_cache: bool = False


class PauseSet(Message, frozen=True):
    """From an attention node: it is as this SetPause wants it. To every front end: all are, or why
    not; or, without a ticket, how it is.

    paused: whether generation stands still from now on.
    """

    ticket: int | None
    paused: bool
    error: str | None = None
