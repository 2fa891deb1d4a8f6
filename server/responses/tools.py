"""The tools of /v1/responses as functions, and calls of these as that API's items."""

import json
from dataclasses import dataclass, field
from typing import Any

from megainfer.errors import RequestError, cited
from server.openai.translation import Json
from server.parsing.call_arguments import repaired

SHELL = "local_shell"
APART = "__"
"""Between the name of a namespace and that of its tool."""
INPUT = "input"
SHELL_PARAMETERS: Json = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["command"],
}


@dataclass(slots=True)
class Toolbox:
    """functions: what the model is told. customs: the names of those whose input is a text.
    namespaces: of functions that are in one: its name, and theirs within."""

    functions: list[Json] = field(default_factory=list)
    customs: set[str] = field(default_factory=set)
    namespaces: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: list[Json] | None) -> "Toolbox":
        """What OpenAI's servers would carry out is left out, if there are others.

        Raises RequestError.
        """
        box = cls()
        for tool in tools or []:
            box._add(tool)
        if tools and not box.functions:
            kind = tools[0].get("type")
            raise RequestError(f"tools: only functions are offered, not {cited(kind)}", "tools")
        return box

    def _add(self, tool: Json, within: str | None = None) -> None:
        name = tool.get("name")
        full = name if within is None else f"{within}{APART}{name}"
        match tool.get("type"):
            case "function":
                self._tell({**{k: v for k, v in tool.items() if k != "type"}, "name": full})
            case "custom":
                self.customs.add(str(full))
                self._tell(_of_text(tool, full))
            case "local_shell" | "shell":
                description = "Run a command on the user's computer."
                self._tell(
                    {"name": SHELL, "description": description, "parameters": SHELL_PARAMETERS}
                )
            case "namespace" if within is None:
                for inner in _objects(tool.get("tools"), "tools"):
                    self._add(inner, within=str(name))
            case _:
                return
        if within is not None:
            self.namespaces[str(full)] = (within, str(name))

    def _tell(self, function: Json) -> None:
        self.functions.append({"type": "function", "function": function})

    def chosen(self, choice: str | Json | None) -> tuple[list[Json], str | Json | None]:
        """The tools that may be called, and `tool_choice` as a chat has it. Raises RequestError."""
        if not isinstance(choice, dict):
            return self.functions, choice
        match choice.get("type"):
            case "function" | "custom":
                return self.functions, _named(choice.get("name"))
            case "local_shell" | "shell":
                return self.functions, _named(SHELL)
            case "allowed_tools":
                allowed = [
                    tool.get("name") for tool in _objects(choice.get("tools"), "tool_choice.tools")
                ]
                some = [tool for tool in self.functions if tool["function"]["name"] in allowed]
                if not some:
                    message = (
                        f"tool_choice allows none of tools: {sorted(map(str, allowed))!r:.200}"
                    )
                    raise RequestError(message, "tool_choice")
                return some, choice.get("mode") or "auto"
        return self.functions, choice

    def item(self, call_id: str, name: str, arguments: str) -> Json:
        """A call as an item, without an id of its own. arguments: so far."""
        if name in self.customs:
            item = {"type": "custom_tool_call", INPUT: input_of(arguments)}
        elif name == SHELL:
            return {"type": "local_shell_call", "call_id": call_id, "action": action_of(arguments)}
        else:
            item = {"type": "function_call", "arguments": arguments}
        namespace, own = self.namespaces.get(name, (None, name))
        more = {} if namespace is None else {"namespace": namespace}
        return {**item, "call_id": call_id, "name": own, **more}


def _objects(value: Any, param: str) -> list[Json]:
    """None are as if they were left out. Raises RequestError."""
    if isinstance(value or [], list) and all(isinstance(part, dict) for part in value or []):
        return value or []
    raise RequestError(f"{param} must be a list of objects, not {cited(value)}", param)


def full_name(item: Json) -> Any:
    """Of a tool that an item of a history has called."""
    name, namespace = item.get("name"), item.get("namespace")
    return f"{namespace}{APART}{name}" if namespace else name


def input_of(arguments: str) -> str:
    """The text that the arguments of a custom tool's call hold."""
    given = json.loads(repaired(arguments)).get(INPUT, "") if arguments else ""
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def action_of(arguments: str) -> Json:
    """What a shell is to do."""
    given = json.loads(repaired(arguments)) if arguments else {}
    command = given.get("command") or []
    words = command if isinstance(command, list) else ["bash", "-lc", str(command)]
    kept = {name: given[name] for name in ("timeout_ms", "working_directory") if name in given}
    env = given.get("env")
    return {
        "type": "exec",
        "command": [str(word) for word in words],
        "env": env if isinstance(env, dict) else {},
        **kept,
    }


def _of_text(tool: Json, name: Any) -> Json:
    wanted = tool.get("format") or {}
    described = str(tool.get("description") or "")
    if isinstance(definition := wanted.get("definition"), str):
        syntax = wanted.get("syntax", "a")
        described += f"\n\nThe input follows this {syntax} grammar:\n{definition}"
    parameters = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    return {"name": name, "description": described.strip(), "parameters": parameters}


def _named(name: Any) -> Json:
    return {"type": "function", "function": {"name": name}}
