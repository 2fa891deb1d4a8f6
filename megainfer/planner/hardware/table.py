"""The devices that plans may use: ours, those of the paper, and a user's own.

A file holds `[device.NAME]` and `[efficiency.NAME]` tables with the fields of `Device` and
`Efficiency`; table.toml says in its comments what each means and where its figures are from.

- A device with `kind` stands on its own. Without, it changes the one of the same name in the files
  before, or starts from the one that `like` names; both at once are refused. A figure that it
  changes and gives no source for has the file as its source.
- `efficiency` is the name of curves, or a table of them, which may start from others by `like`.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError
from megainfer.planner.hardware.device import Device
from megainfer.planner.hardware.fields import as_device
from megainfer.small_file import MEGABYTE, read_small_text

MOST_BYTES = 4 * MEGABYTE
Table = dict[str, Any]


def load_devices(path: Path | None = None) -> dict[str, Device]:
    """Devices by name: ours, with what the file at `path` adds and changes.

    Raises ConfigError, naming the file, the device and the value at fault.
    """
    book = _Book()
    book.add(_ours("table.toml"), "table.toml")
    if path is not None:
        book.add(_read(path), str(path))
    return book.devices()


def paper_devices() -> dict[str, Device]:
    """The five of MegaScale-Infer (arXiv 2504.02263), with its figures and prices."""
    book = _Book()
    book.add(_ours("table.toml"), "table.toml")
    paper = _ours("paper.toml")
    book.add(paper, "paper.toml")
    return {name: device for name, device in book.devices().items() if name in paper["device"]}


def find_device(devices: Mapping[str, Device], name: str) -> Device:
    """The device of this name; case, spaces, dashes and underscores don't matter.

    Raises ConfigError with the nearest names.
    """
    names = {_plain(known): known for known in devices}
    if _plain(name) in names:
        return devices[names[_plain(name)]]
    near = get_close_matches(_plain(name), names, 3)
    nearest = f"the nearest: {', '.join(names[n] for n in near)}; " if near else ""
    raise ConfigError(
        f"no device is called {name!r:.80}; {nearest}known are {', '.join(sorted(devices))}; "
        "a file of your own adds others"
    )


class _Book:
    """Tables of several files, one over the other."""

    def __init__(self) -> None:
        self._devices: dict[str, Table] = {}
        self._efficiencies: dict[str, Table] = {}
        self._origins: dict[str, str] = {}

    def add(self, content: Table, origin: str) -> None:
        """What a file says, over what those before said."""
        for key in content:
            if key not in ("device", "efficiency"):
                raise ConfigError(
                    f"{origin}: {key!r:.80} is no table of devices; expected are [device.NAME] and "
                    "[efficiency.NAME]"
                )
        for name, table in _tables(content, "efficiency", origin).items():
            base = self._efficiencies.get(name, {}) if "like" not in table else {}
            self._efficiencies[name] = _over(base, table)
        for name, table in _tables(content, "device", origin).items():
            self._add_device(name, table, origin)

    def devices(self) -> dict[str, Device]:
        """All of them, checked."""
        return {name: self._device(name, table) for name, table in self._devices.items()}

    def _add_device(self, name: str, table: Table, origin: str) -> None:
        given = dict(table)
        if isinstance(given.get("efficiency"), str):
            given["efficiency"] = {"like": given["efficiency"]}
        sources = given.get("sources", {})
        if isinstance(sources, dict):
            figures = [key for key in given if key not in ("kind", "like", "sources")]
            given["sources"] = dict.fromkeys(figures, f"given in {origin}") | sources
        known = {_plain(other): other for other in self._devices}
        same = known.get(_plain(name))
        if "kind" in given and "like" in given:
            raise ConfigError(
                f"{origin}: device {name} has a kind and is like {given['like']!r:.80}: with kind "
                "it stands on its own and needs all its figures; leave one of them out"
            )
        if "kind" in given:
            base: Table = {}
            if same is not None:
                del self._devices[same]
        elif "like" in given:
            base = self._devices[self._like(given.pop("like"), known, f"{origin}: device {name}")]
        elif same is not None:
            name, base = same, self._devices[same]
        else:
            raise ConfigError(
                f"{origin}: device {name} is not in our table; say what it is (kind and all its "
                'figures), or which it is like (like = "H100")'
            )
        self._devices[name] = _over(base, given)
        self._origins[name] = origin

    def _device(self, name: str, table: Table) -> Device:
        where = f"{self._origins[name]}: device {name}"
        efficiency = self._efficiency(table.get("efficiency", {}), where, ())
        return as_device(name, table | {"efficiency": efficiency}, where)

    def _efficiency(self, table: Any, where: str, seen: tuple[str, ...]) -> Any:
        if not isinstance(table, dict) or "like" not in table:
            return table
        known = {_plain(other): other for other in self._efficiencies}
        like = self._like(table["like"], known, f"{where}: efficiency")
        if like in seen:
            raise ConfigError(f"{where}: efficiency {like} is like itself")
        base = self._efficiency(self._efficiencies[like], where, (*seen, like))
        return _over(base, {key: value for key, value in table.items() if key != "like"})

    @staticmethod
    def _like(name: object, known: Mapping[str, str], where: str) -> str:
        plain = _plain(name) if isinstance(name, str) else ""
        if plain in known:
            return known[plain]
        near = [known[n] for n in get_close_matches(plain, known, 3)] or sorted(known.values())
        raise ConfigError(f"{where} is like {name!r:.80}, which isn't there; try {', '.join(near)}")


def _ours(name: str) -> Table:
    return tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(read_small_text(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def _tables(content: Table, kind: str, origin: str) -> dict[str, Table]:
    found = content.get(kind, {})
    if not isinstance(found, dict) or not all(isinstance(t, dict) for t in found.values()):
        raise ConfigError(f"{origin}: {kind} must be tables, [{kind}.NAME]")
    return found


def _over(base: Table, given: Table) -> Table:
    """`given` over `base`; tables in them alike, all else as a whole."""
    merged = dict(base)
    for key, value in given.items():
        below = merged.get(key)
        # Curves by name replace what was there: their own parts are all that they say.
        named = key == "efficiency" and isinstance(value, dict) and "like" in value
        inside = isinstance(below, dict) and isinstance(value, dict) and not named
        merged[key] = _over(merged[key], value) if inside else value
    return merged


def _plain(name: str) -> str:
    """
    >>> _plain("RTX PRO 6000") == _plain("rtx-pro_6000")
    True
    """
    return name.casefold().translate(dict.fromkeys(map(ord, " -_")))
