"""What the first rank has the others do with it."""

from typing import Any

import msgspec

from megainfer.rl.samples.rows import PolicyRow, Row, ValueRow


class Open(msgspec.Struct, tag=True):
    """A learner: from the folders of a policy and perhaps of a value model, or from a checkpoint,
    where `resumed` says so."""

    folder: str
    value: str | None = None
    resumed: bool = False


class Predict(msgspec.Struct, tag=True):
    """See `Learner.predict`."""

    rows: list[Row]


class Learn(msgspec.Struct, tag=True):
    """See `Learner.learn`."""

    policy: list[PolicyRow]
    value: list[ValueRow]


class Save(msgspec.Struct, tag=True):
    """Give the first rank all parts: of the policy alone, or of everything."""

    policy_alone: bool


class End(msgspec.Struct, tag=True):
    """Nothing follows."""


Command = Open | Predict | Learn | Save | End


def encoded(command: Command) -> bytes:
    """For `decoded`; numbers keep every bit."""
    return _ENCODER.encode(command)


def decoded(message: bytes) -> Command:
    """What `encoded` was given."""
    command: Command = _DECODER.decode(message)
    return command


def _from_range(value: Any) -> list[int]:
    return [value.start, value.stop]


def _to_range(kind: type, value: Any) -> range:
    assert kind is range
    return range(*value)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_from_range)
_DECODER = msgspec.msgpack.Decoder(Command, dec_hook=_to_range)
