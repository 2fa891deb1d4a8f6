"""Options that several commands share: declared once as a dataclass, taken by any command.

    @dataclass(frozen=True)
    class Listening:
        port: Annotated[int, Option(help="Port to listen on.")] = 8000

    @takes_options
    def serve(model: str, listening: Listening) -> None: ...

`serve` then has the option --port, and is called with a `Listening` made of what was given.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def takes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` as typer is to see it: each dataclass among its parameters by its fields."""
    groups: dict[str, type[Any]] = {}
    seen: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            seen += _parameters(kind)
        else:
            seen.append(
                parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
            )

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        return command(**given, **made)

    call.__signature__ = inspect.Signature(seen)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in seen}
    return call


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
