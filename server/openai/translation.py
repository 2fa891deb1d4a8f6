"""From the requests of other APIs to a chat request."""

from typing import Any

from pydantic import ValidationError

from megainfer.errors import RequestError, cited
from server.openai.protocol import Body, ChatRequest

Json = dict[str, Any]


def chat_request(fields: Json, body: Body) -> ChatRequest:
    """A chat of these fields, and of those that the body has beyond its API, which a chat knows or
    refuses. Raises RequestError naming the first field that is wrong.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatRequest.model_validate({**(body.model_extra or {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise RequestError(f"{where}: {message}", where) from error


def refuse(fields: Json, neutral: dict[str, tuple[Any, ...]], why: str) -> None:
    """Raises RequestError for the first of these fields that asks for something."""
    for name, harmless in neutral.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise RequestError(f"{name}: {why}", name)


def text_of(content: Any, kinds: tuple[str, ...], where: str) -> str:
    """The text of a string or of parts of these kinds. Raises RequestError for any other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of parts", where)
    return "\n".join(_text_part(part, kinds, where) for part in content)


def _text_part(part: Any, kinds: tuple[str, ...], where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in kinds or not isinstance(part.get("text"), str):
        shown = " or ".join(kinds)
        raise RequestError(
            f"{where}: only parts of type {shown} are offered, not {cited(kind)}", where
        )
    return str(part["text"])
