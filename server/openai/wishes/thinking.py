"""What a chat asks of thinking, in the words of several servers: whether, and how hard."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from megainfer.errors import RequestError, cited

EFFORT = "reasoning_effort"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""OpenAI's; a model knows some of them."""
SWITCHES = ("enable_thinking", "thinking")
"""Names by which chat templates know whether the model is to think."""
KINDS = {"enabled": True, "adaptive": True, "auto": None, "disabled": False}
"""Of `thinking.type`."""
KNOWN = {"thinking": ("type",), "reasoning": ("effort", "enabled", "summary")}
"""What is offered inside of these objects; OpenAI's summaries come as the reasoning itself."""


def wanted_effort(fields: Mapping[str, Any]) -> str | None:
    """`reasoning_effort`, or `reasoning.effort` as OpenRouter has it. Raises RequestError."""
    inner = _inside(fields, "reasoning").get("effort")
    if inner is not None and inner not in get_args(Effort):
        known = ", ".join(get_args(Effort))
        raise RequestError(
            f"reasoning.effort must be one of {known}, not {cited(inner)}", "reasoning.effort"
        )
    own = fields.get(EFFORT)
    return inner if own is None else own


def wants_thinking(fields: Mapping[str, Any]) -> bool | None:
    """Whether the model is to think; None where nothing is said. Raises RequestError."""
    kind = _inside(fields, "thinking").get("type")
    if kind is not None and not (isinstance(kind, str) and kind in KINDS):
        known = ", ".join(KINDS)
        raise RequestError(f"thinking.type must be one of {known}, not {cited(kind)}", "thinking")
    said = [
        fields.get("enable_thinking"),
        None if kind is None else KINDS[kind],
        _inside(fields, "reasoning").get("enabled"),
    ]
    wishes = [wish for wish in said if wish is not None]
    if not all(isinstance(wish, bool) for wish in wishes) or len(set(wishes)) > 1:
        raise RequestError(
            "enable_thinking, thinking and reasoning.enabled must be true or false, and agree",
            "enable_thinking",
        )
    return wishes.pop() if wishes else None


def switched(wish: bool | None) -> dict[str, bool]:
    """The variables of a chat template that say so."""
    return {} if wish is None else dict.fromkeys(SWITCHES, wish)


def _inside(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Raises RequestError for what isn't offered in this object."""
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must be an object, not {cited(value)}", name)
    for inner, wish in value.items():
        if inner not in KNOWN[name] and wish not in (None, False):
            where = f"{name}.{inner}"
            raise RequestError(f"{where} isn't offered by this server, but is {cited(wish)}", where)
    return value
