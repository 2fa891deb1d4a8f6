"""What an answer must look like, for offline use."""

from dataclasses import dataclass, fields
from typing import Any

from megainfer.errors import RequestError
from megainfer.structured.constraint import constraint
from megainfer.structured.grammar import Grammar

PARAM = "structured_outputs"


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """Exactly one of these, by vLLM's names.

    json: a JSON schema, as a dictionary or as text. regex: an expression that the whole text
    matches. choice: a list of texts. grammar: in Lark's notation or GBNF. json_object: True for any
    JSON object.

    Raises RequestError, naming the field and the value.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        kinds = [field.name for field in fields(self) if self._asks_for(field.name)]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            raise RequestError(f"{PARAM} must hold exactly one wish, but holds {given}", PARAM)
        self.to_grammar()

    def to_grammar(self) -> Grammar:
        """As the engine knows it."""
        (kind,) = [field.name for field in fields(self) if self._asks_for(field.name)]
        return constraint(kind, getattr(self, kind), f"{PARAM}.{kind}")

    def _asks_for(self, kind: str) -> bool:
        return getattr(self, kind) not in (None, False)
