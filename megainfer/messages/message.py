"""What every message has in common: a struct, tagged by its name; its bytes are msgpack."""

from enum import StrEnum

import msgspec


class Role(StrEnum):
    ATTENTION = "attention"
    EXPERT = "expert"
    SERVER = "server"


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message; the tag is the class's name."""


def encode(message: Message) -> bytes:
    """msgpack bytes of any message."""
    return msgspec.msgpack.encode(message)
