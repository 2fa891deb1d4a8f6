"""A device from what a file says, and what a file says of a device."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from megainfer.errors import ConfigError
from megainfer.planner.hardware.curve import Utilisation
from megainfer.planner.hardware.device import Device, Link
from megainfer.planner.hardware.efficiency import BY_DTYPE, BY_SIZE, SECONDS, Efficiency

Kind = TypeVar("Kind")


def as_device(name: str, table: Mapping[str, Any], where: str) -> Device:
    """The device of this name. Raises ConfigError, which begins with `where`."""
    _check_names(table, Device, where)
    for part, kind in (("link", Link), ("nic", Link), ("efficiency", Efficiency)):
        if isinstance(inner := table.get(part), dict):
            _check_names(inner, kind, f"{where}: {part}")
    return _converted({**_with_curves(table, where), "name": name}, Device, where)


def to_toml(devices: Iterable[Device]) -> str:
    """A file that `load_devices` reads back as these devices, where each figure has its source.

    >>> from megainfer.planner.hardware.table import load_devices
    >>> to_toml([load_devices()["H100"]]).splitlines()[:2]
    ['[device."H100"]', 'kind = "gpu"']
    """
    return "\n\n".join("\n".join(_lines(device)) for device in devices) + "\n"


def _check_names(table: Mapping[str, Any], kind: type, where: str) -> None:
    names = [field.name for field in fields(kind) if field.name != "name"]
    for key in table:
        if key not in names:
            near = get_close_matches(key, names, 1) or names
            raise ConfigError(f"{where}: there is no {key!r:.80}; did you mean {', '.join(near)}?")


def _with_curves(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same with lists of points as a `Utilisation` has them."""
    given = dict(table)
    if isinstance(curves := given.get("efficiency"), dict):
        given["efficiency"] = curves = dict(curves)
        for key in BY_SIZE:
            if key in curves:
                curves[key] = _curve(curves[key], f"{where}: efficiency.{key}")
        for key in BY_DTYPE:
            if isinstance(named := curves.get(key), dict):
                curves[key] = {
                    dtype: _curve(points, f"{where}: efficiency.{key}.{dtype}")
                    for dtype, points in named.items()
                }
    return given


def _curve(points: Any, where: str) -> Mapping[str, Any]:
    """Checked here, where its name is known."""
    fields_of_it = {"points": points}
    _converted(fields_of_it, Utilisation, where)
    return fields_of_it


def _converted(values: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    """Raises ConfigError, which begins with `where`."""
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _lines(device: Device) -> Iterator[str]:
    head = f"device.{_quoted(device.name)}"
    yield f"[{head}]"
    yield f"kind = {_quoted(device.kind)}"
    for field in ("memory_bytes", "memory_bytes_per_second", "watts", "price"):
        yield f"{field} = {getattr(device, field)!r}"
    for name, link in (("link", device.link), ("nic", device.nic)):
        figures = (f"{field.name} = {getattr(link, field.name)!r}" for field in fields(Link))
        yield f"{name} = {{ {', '.join(figures)} }}"
    rates = (f"{arithmetic} = {rate!r}" for arithmetic, rate in device.flops.items())
    yield f"flops = {{ {', '.join(rates)} }}"
    yield f"[{head}.sources]"
    yield from (f"{_quoted(field)} = {_quoted(said)}" for field, said in device.sources.items())
    yield f"[{head}.efficiency]"
    yield from (f"{name} = {getattr(device.efficiency, name)!r}" for name in SECONDS)
    yield from (f"{name} = {_points(getattr(device.efficiency, name))}" for name in BY_SIZE)
    for name in BY_DTYPE:
        yield f"[{head}.efficiency.{name}]"
        curves: Mapping[str, Utilisation] = getattr(device.efficiency, name)
        yield from (f"{_quoted(dtype)} = {_points(curve)}" for dtype, curve in curves.items())


def _points(curve: Utilisation) -> str:
    return f"[{', '.join(f'[{size!r}, {fraction!r}]' for size, fraction in curve.points)}]"


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's, but that it writes one more character out."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
