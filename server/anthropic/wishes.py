"""What else a request of /v1/messages may ask for: obeyed, or refused by name."""

from collections.abc import Mapping
from typing import Any, get_args

from megainfer.errors import RequestError, cited
from server.openai.wishes.thinking import KINDS, Effort

Json = dict[str, Any]
USUAL_EFFORT = "high"  # Anthropic's default
KNOWN = ("format", "effort")
OF_THINKING = ("type", "budget_tokens", "display")


def wanted_format(config: Mapping[str, Any] | None, older: Any) -> Json | None:
    """`output_config.format`, or `output_format` as it was called, as a chat's `response_format`.

    Raises RequestError for what isn't offered of them.
    """
    config = config or {}
    for name, value in config.items():
        if name not in KNOWN and value is not None:
            where = f"output_config.{name}"
            raise RequestError(f"{where} isn't offered by this server", where)
    given = [
        (where, value)
        for where, value in (
            ("output_config.format", config.get("format")),
            ("output_format", older),
        )
        if value is not None
    ]
    if not given:
        return None
    if len(given) > 1:
        raise RequestError(
            "output_config.format and output_format are one; leave one out", "output_format"
        )
    ((where, wanted),) = given
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind != "json_schema" or "schema" not in wanted:
        message = f'{where} must be {{"type": "json_schema", "schema": ...}}, not {cited(wanted)}'
        raise RequestError(message, where)
    return {"type": "json_schema", "json_schema": {"schema": wanted["schema"]}}


def wanted_effort(config: Mapping[str, Any] | None) -> str | None:
    """Of `output_config`; the usual one says nothing. Raises RequestError."""
    effort = (config or {}).get("effort")
    if effort is not None and effort not in get_args(Effort):
        where, known = "output_config.effort", ", ".join(get_args(Effort))
        raise RequestError(f"{where} must be one of {known}, not {cited(effort)}", where)
    return None if effort == USUAL_EFFORT else effort


def wanted_thinking(wanted: Mapping[str, Any] | None) -> bool | None:
    """Raises RequestError for what isn't offered of `thinking`. A budget isn't kept to: it is what
    a model may take, and `max_tokens` bounds it."""
    if not wanted:
        return None
    for name, value in wanted.items():
        harmless = name in OF_THINKING and not (name == "display" and value == "omitted")
        if value is not None and not harmless:
            where = f"thinking.{name}"
            message = f"{where} isn't offered by this server, but is {cited(value)}"
            raise RequestError(message, where)
    kind = wanted.get("type")
    if not (isinstance(kind, str) and kind in KINDS):
        raise RequestError(
            f"thinking.type must be one of {', '.join(KINDS)}, not {cited(kind)}", "thinking.type"
        )
    return KINDS[kind]


def refuse_edits(management: Any) -> None:
    """Raises RequestError for an edit of the conversation. What is shown of old thoughts is the
    chat template's affair."""
    edits = management.get("edits") if isinstance(management, dict) else management
    where = "context_management"
    if not isinstance(edits or [], list):
        raise RequestError(f"{where}.edits must be a list, not {cited(edits)}", where)
    for edit in edits or ():
        kind = edit.get("type") if isinstance(edit, dict) else edit
        if not str(kind).startswith("clear_thinking"):
            raise RequestError(f"{where}: {cited(kind)} isn't offered by this server", where)
