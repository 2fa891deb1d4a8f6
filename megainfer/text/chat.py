"""A chat on its way to token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages as templates know them. variables: further names for the template. opens_an_answer:
    the prompt ends where the assistant begins to speak. continues_last: it ends inside the last
    message instead."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    opens_an_answer: bool = True
    continues_last: bool = False
    add_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """text: what the ids spell."""

    ids: list[int]
    text: str


class ChatEncoder(Protocol):
    """Of models whose chats have no template."""

    marks: str
    """Texts by which it can be seen how the model writes calls and reasoning."""

    def encode(self, chat: Chat) -> EncodedChat:
        """Raises RequestError."""
        ...
