"""The tools of /v1/messages as functions."""

from typing import Any

from megainfer.errors import RequestError, cited
from server.openai.translation import Json

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
TEXT = {"type": "string"}
OF_CLIENTS: dict[str, Json] = {
    "bash": {
        "description": "Run a command in a bash session that stays open.",
        "properties": {"command": TEXT, "restart": {"type": "boolean"}},
    },
    "text_editor": {
        "description": "View, create and edit files.",
        "properties": {
            "command": {"enum": ["view", "create", "str_replace", "insert"]},
            "path": TEXT,
            "file_text": TEXT,
            "old_str": TEXT,
            "new_str": TEXT,
            "insert_line": {"type": "integer"},
            "insert_text": TEXT,
            "view_range": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["command", "path"],
    },
    "memory": {
        "description": "Files that remain between conversations, below /memories.",
        "properties": {
            "command": {
                "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
            },
            **dict.fromkeys(("path", "file_text", "old_str", "new_str"), TEXT),
            **dict.fromkeys(("insert_text", "old_path", "new_path"), TEXT),
            "insert_line": {"type": "integer"},
        },
        "required": ["command"],
    },
}
"""What Anthropic's models know without being told; by what their types begin with."""


def functions(tools: list[Json] | None) -> list[Json] | None:
    """Tools that Anthropic's servers would carry out are left out, if there are others.

    Raises RequestError.
    """
    if not tools:
        return tools
    made = [function for tool in tools if (function := _function(tool)) is not None]
    if not made:
        message = f"tools: only those with an input_schema are offered, not {cited(tools[0])}"
        raise RequestError(message, "tools")
    return made


def tool_choice(choice: Json | None) -> str | Json | None:
    """Raises RequestError."""
    if not choice:
        return None
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in CHOICES:
        known = ", ".join((*CHOICES, "tool"))
        raise RequestError(
            f"tool_choice.type must be one of {known}, not {cited(kind)}", "tool_choice"
        )
    return CHOICES[kind]


def _function(tool: Json) -> Json | None:
    described: Any = tool
    if "input_schema" not in tool:
        kind = str(tool.get("type"))
        known = next((each for name, each in OF_CLIENTS.items() if kind.startswith(name)), None)
        if known is None:
            return None
        schema = {"type": "object", **{k: v for k, v in known.items() if k != "description"}}
        described = {"description": known["description"], "input_schema": schema}
    function = {"name": tool.get("name"), "parameters": described["input_schema"]}
    if "description" in described:
        function["description"] = described["description"]
    return {"type": "function", "function": function}
