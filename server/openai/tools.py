"""Tools that a request offers to the model, and what it may or must do with them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured import grammar as grammars
from megainfer.structured.schema import moved
from server.openai.structured import Wanted

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
DEFINITIONS = ("$defs", "definitions")
OF_ROOTS = frozenset({"$schema", "$id"})
"""What means something else, or nothing, where a schema is a part of another."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """tools: what the chat template is told. must: the model can't but call one; named: this one.
    one_call: all calls but the first are dropped."""

    tools: tuple[Json, ...] = ()
    must: bool = False
    named: str | None = None
    one_call: bool = False

    @property
    def shape(self) -> Wanted | None:
        """What the answer has to look like where a tool must be called: the arguments of the named
        one, else an array of calls."""
        if not self.must:
            return None
        if self.named is not None:
            (schema,) = [_parameters(t) for t in self.tools if _name(t) == self.named]
            return Wanted(grammars.json_schema(schema, "tools"), "tools")
        return Wanted(grammars.json_schema(_array_of_calls(self), "tools"), "tools")


def tool_use(tools: Sequence[Json] | None, choice: Any, parallel: bool | None) -> ToolUse:
    """What the fields of a request say. Raises RequestError."""
    known = tuple(tools or ())
    _check(known)
    if choice in (None, "auto"):
        return ToolUse(known, one_call=parallel is False)
    if choice == "none":
        return ToolUse()
    if not known:
        raise RequestError("tool_choice asks for a call, but tools is empty", "tool_choice")
    if choice == "required":
        return ToolUse(known, must=True, one_call=parallel is False)
    return ToolUse(known, must=True, named=_named(choice, known))


def _check(tools: Sequence[Json]) -> None:
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"tools holds {len(tools)}; at most {MAX_TOOLS} may be", "tools")
    for position, tool in enumerate(tools):
        where = f"tools[{position}]"
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            message = f'{where} must be {{"type": "function", "function": {{...}}}}'
            raise RequestError(f"{message}, not {cited(tool)}", where)
        name = tool["function"].get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise RequestError(f"{where}.function.name {cited(name)} is no name", where)
        if not isinstance(said := tool["function"].get("description"), str | None):
            message = f"{where}.function.description must be a string, not {cited(said)}"
            raise RequestError(message, where)
        _check_parameters(tool["function"].get("parameters"), f"{where}.function.parameters")
    names = [_name(tool) for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError(f"tools have one name twice: {cited(names, 200)}", "tools")


def _check_parameters(parameters: Any, where: str) -> None:
    of_objects = isinstance(parameters, dict) and parameters.get("type", "object") == "object"
    if parameters is not None and not of_objects:
        message = f"{where} must be a JSON schema of an object, not {cited(parameters)}"
        raise RequestError(message, where)
    for key in DEFINITIONS:
        if not isinstance((parameters or {}).get(key) or {}, dict):
            raise RequestError(f"{where}.{key} must be an object", where)


def _named(choice: Any, tools: Sequence[Json]) -> str:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None:
        known = 'none, auto, required or {"type": "function", "function": {"name": ...}}'
        raise RequestError(f"tool_choice must be {known}, not {cited(choice)}", "tool_choice")
    names = [_name(tool) for tool in tools]
    if name not in names:
        message = f"tool_choice names {cited(name)}, which isn't among tools: {cited(names, 200)}"
        raise RequestError(message, "tool_choice")
    return str(name)


def _name(tool: Json) -> str:
    return str(tool["function"]["name"])


def _parameters(tool: Json) -> Json:
    given = tool["function"].get("parameters") or {"properties": {}, "additionalProperties": False}
    return {"type": "object", **{key: value for key, value in given.items() if key not in OF_ROOTS}}


def _array_of_calls(use: ToolUse) -> Json:
    """References are from the root of a schema, so each tool's own is moved below `$defs`."""
    definitions, calls = {}, []
    for number, tool in enumerate(use.tools):
        place = f"#/$defs/{number}"
        definitions[str(number)] = moved(_parameters(tool), place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": _name(tool)}, "parameters": {"$ref": place}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    most = {"maxItems": 1} if use.one_call else {}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}, "$defs": definitions}
