"""What an answer must look like, as it travels from the API to the attention node."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from megainfer.errors import RequestError, cited

MAX_GRAMMAR_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_VALUES = 50_000
MAX_COMPILED_BYTES = 16 * 2**20
MAX_STACK_BYTES = 8 * 2**20
"""Of whoever tries a grammar out: the library goes down into what a schema refers to, and a process
whose stack ends dies of it."""


class GrammarFailed(RequestError):
    """The grammar became too costly to follow, or doesn't allow a token that was generated."""


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"  # or GBNF, which is recognised by its `::=`


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """text: the schema as JSON, the expression or the grammar. after: where the model thinks first,
    the token after which its answer begins; until then anything is allowed. cost: bytes that it
    takes when it is compiled, once that was tried out."""

    kind: GrammarKind
    text: str
    after: int | None = None
    cost: int = 0


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What came of trying out a grammar. problem: why it can't be used. cost: bytes that it takes
    when it is compiled."""

    problem: str | None
    cost: int = 0


def json_schema(schema: Any, param: str) -> Grammar:
    """Any JSON that this schema describes. Raises RequestError naming `param`."""
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{param} must be a JSON schema, but is {cited(schema)}", param)
    _check_schema(schema, param)
    return _sized(GrammarKind.JSON_SCHEMA, json.dumps(schema), param)


def json_object() -> Grammar:
    """Any JSON object."""
    return Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')


def regex(expression: str, param: str) -> Grammar:
    """Texts that the expression matches as a whole."""
    return _sized(GrammarKind.REGEX, expression, param)


def lark(text: str, param: str) -> Grammar:
    """Texts of a context-free grammar in Lark's or GBNF's notation."""
    return _sized(GrammarKind.LARK, text, param)


def choice(texts: Sequence[str], param: str) -> Grammar:
    """One of these texts, none of them empty."""
    if not texts or not all(texts):
        message = f"{param} must be a list of texts, none of them empty, but is {cited(texts)}"
        raise RequestError(message, param)
    quoted = [json.dumps(text, ensure_ascii=False) for text in texts]
    return _sized(GrammarKind.LARK, f"start: {' | '.join(quoted)}", param)


def _sized(kind: GrammarKind, text: str, param: str) -> Grammar:
    if not text:
        raise RequestError(f"{param} is empty", param)
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_GRAMMAR_BYTES:
        message = f"{param} has {size} bytes; at most {MAX_GRAMMAR_BYTES} are compiled"
        raise RequestError(message, param)
    return Grammar(kind, text)


def _check_schema(schema: Any, param: str) -> None:
    """Before it is written as text, which takes a while for a large one."""
    level, values = [schema], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        values += sum(len(outer) for outer in level if isinstance(outer, dict | list))
        if values > MAX_SCHEMA_VALUES:
            raise RequestError(
                f"{param} holds more than {MAX_SCHEMA_VALUES} values; make it smaller", param
            )
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    message = f"{param} is nested deeper than {MAX_SCHEMA_DEPTH} levels; make it flatter"
    raise RequestError(message, param)


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]
