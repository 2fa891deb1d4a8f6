"""A flag for every key of a configuration: `section.some_key` is `--section.some-key`."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer import Option

from megainfer.config import parse_json_object
from megainfer.rl.config.section import Section

METAVARS = {int: "INTEGER", float: "FLOAT", dict: "JSON"}


@dataclass(frozen=True)
class Flag:
    """path: of the key, ("section", "some_key") or ("some_key",)."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def parameter(self) -> str:
        """Its name among a function's parameters."""
        return "__".join(self.path)

    @property
    def name(self) -> str:
        return "--" + ".".join(self.path).replace("_", "-")

    def option(self) -> inspect.Parameter:
        """As typer is to see it. Values are texts, which the configuration reads: a file's and a
        flag's are checked by the same rules."""
        default = self.field.default
        shown = None if default in (PydanticUndefined, None) else str(default)
        told: dict[str, Any] = {
            "help": self.field.description,
            "rich_help_panel": self.path[0].capitalize() if len(self.path) > 1 else "Run of what",
            "show_default": shown or False,
        }
        kind: Any = str
        name = self.name
        if self.field.annotation is bool:
            kind, name = bool, f"{self.name}/--no-{self.name[2:]}"
        elif get_origin(self.field.annotation) is dict:
            told |= {"parser": partial(parse_json_object, flag=self.name), "metavar": "JSON"}
        else:
            told["metavar"] = self._metavar()
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, Option(name, **told)],
        )

    def _metavar(self) -> str:
        kind: Any = self.field.annotation
        if kind in METAVARS:
            return METAVARS[kind]
        choices = get_args(kind)
        if choices and all(isinstance(choice, str) for choice in choices):
            return "|".join(choices)
        return "TEXT"


def flags_of(kind: type[Section]) -> Iterator[Flag]:
    """Of every key, in the order of the sections."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from (Flag((name, *flag.path), flag.field) for flag in flags_of(inner))
        else:
            yield Flag((name,), field)


def merged(
    values: Mapping[Any, Any], flags: Mapping[str, Flag], given: Mapping[str, Any]
) -> dict[str, Any]:
    """A file's values, over which those of given flags win. Keys may be written with dashes."""
    found = _underscored(values)
    for name, value in given.items():
        if value is not None:
            *sections, key = flags[name].path
            place = found
            for section in sections:
                if not isinstance(place.get(section), dict):
                    place[section] = {}
                place = place[section]
            place[key] = _underscored(value) if isinstance(value, Mapping) else value
    return found


def _underscored(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key).replace("-", "_"): _underscored(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
