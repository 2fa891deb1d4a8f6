"""The text of what clients send in parts."""

from collections.abc import Collection
from typing import Any

from megainfer.errors import RequestError, cited

TEXT_PARTS: dict[str, str] = {
    **dict.fromkeys(("text", "input_text", "output_text", "summary_text"), "text"),
    "reasoning_text": "text",
    "refusal": "refusal",
    "tool_reference": "tool_name",
}
"""Where the text of a part stands, by its type."""
UNSEEN = "[{} left out: this model reads text only]"


def text_of(content: Any, where: str, left_out: Collection[str] = ()) -> str:
    """The text of a string or of parts, joined by line ends. left_out: types of which a word is all
    that remains, so that the conversation goes on. Raises RequestError for any other."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of parts", where)
    return "\n".join(_text_part(part, where, left_out) for part in content)


def _text_part(part: Any, where: str, left_out: Collection[str]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in left_out:
        return UNSEEN.format(kind.removeprefix("input_"))
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
    if not isinstance(text, str):
        raise RequestError(
            f"{where}: only parts of type text are offered, not {cited(kind)}", where
        )
    return text
