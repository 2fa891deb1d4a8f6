"""A plan as bytes, for a process that was not forked from the one that made it; never pickle.

msgpack of `[FORMAT, plan]`, where a dataclass is `[its name, {field: value}]`, a path its text, and
all else what msgpack makes of it. Reading goes by the fields' annotations: what doesn't fit them
is refused by name, so that two versions can't misunderstand each other.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from megainfer.errors import MegaInferError, ProtocolError
from megainfer.launch.plan import Plan

FORMAT = 1


def encode_plan(plan: Plan) -> bytes:
    """What `decode_plan` reads."""
    return msgspec.msgpack.encode([FORMAT, _plain(plan)])


def decode_plan(data: bytes) -> Plan:
    """The plan that these bytes are of, equal to the one that was encoded.

    Raises ProtocolError for any other bytes.
    """
    try:
        content = msgspec.msgpack.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes are no plan: {error}") from None
    match content:
        case [int(number), plain] if number == FORMAT:
            plan: Plan = _built(Plan, plain, "plan")
            return plan
        case [int(number), _]:
            raise ProtocolError(f"a plan of format {number}; this version reads {FORMAT}")
    raise ProtocolError(f"{len(data)} bytes are no plan: they begin with no format")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return [type(value).__name__, content]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _built(kind: Any, plain: Any, where: str) -> Any:
    """The `kind` that this was; where: its name in errors."""
    if get_origin(kind) in (Union, UnionType):
        return _one_of(get_args(kind), plain, where)
    if is_dataclass(kind):
        return _dataclass(kind, plain, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), plain, where)
    try:
        return Path(msgspec.convert(plain, str)) if kind is Path else msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{where} of a plan: {error}") from None


def _one_of(kinds: tuple[Any, ...], plain: Any, where: str) -> Any:
    """A dataclass says its name; of what else there may be, at most one kind isn't None."""
    if plain is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    named = [kind for kind in others if _is_a(kind, plain)]
    if named or len(others) == 1:
        return _built((named or others)[0], plain, where)
    known = ", ".join(getattr(kind, "__name__", str(kind)) for kind in others)
    raise ProtocolError(f"{where} of a plan is none of {known}: {plain!r:.80}")


def _is_a(kind: Any, plain: Any) -> bool:
    """Whether it says that it was this dataclass."""
    named = isinstance(plain, list) and plain and plain[0]
    return isinstance(kind, type) and is_dataclass(kind) and named == kind.__name__


def _dataclass(kind: Any, plain: Any, where: str) -> Any:
    kinds = _field_kinds(kind)
    match plain:
        case [kind.__name__, Mapping() as content] if content.keys() == kinds.keys():
            values = {name: _built(kinds[name], content[name], f"{where}.{name}") for name in kinds}
        case _:
            raise ProtocolError(
                f"{where} of a plan is no {kind.__name__} as this version has it, with "
                f"{', '.join(kinds)}: {plain!r:.80}"
            )
    try:
        return kind(**values)
    except MegaInferError as error:
        raise ProtocolError(f"{where} of a plan: {error}") from error


@cache
def _field_kinds(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _tuple(kinds: tuple[Any, ...], plain: Any, where: str) -> Any:
    if not isinstance(plain, list):
        raise ProtocolError(f"{where} of a plan is no list: {plain!r:.80}")
    each = (kinds[0],) * len(plain) if kinds[-1] is Ellipsis else kinds
    if len(each) != len(plain):
        raise ProtocolError(f"{where} of a plan has {len(plain)} items, not {len(each)}")
    return tuple(
        _built(kind, item, f"{where}[{place}]")
        for place, (kind, item) in enumerate(zip(each, plain, strict=True))
    )
