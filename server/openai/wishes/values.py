"""Kinds of values in the bodies of requests. What may be long is looked at as a whole, since nobody
else is heard meanwhile."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from megainfer.errors import cited
from megainfer.sampling import MAX_LOGIT_BIAS, check_count

MAX_PROMPTS = 2048
MAX_LOGPROBS = 20  # beside each token's own, as in OpenAI's API and by vLLM's default


def whole_number(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_numbers(value: Any) -> Any:
    """`whole_number` of each. A list of integers, which may be long, is looked through natively."""
    if not isinstance(value, list) or float not in set(map(type, value)):
        return value
    return [int(v) if type(v) is float and v.is_integer() else v for v in value]


def counted(name: str, most: int, what: str) -> BeforeValidator:
    """Of a list that is too long no item is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list):
            check_count(name, value, most, what)
        return value

    return BeforeValidator(check)


Integer = Annotated[int, BeforeValidator(whole_number)]
Integers = Annotated[list[int], Field(fail_fast=True), BeforeValidator(whole_numbers)]
Strings = Annotated[list[str], Field(fail_fast=True)]
Logprobs = Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)]
Prompts = list[str] | list[list[int]]
JsonObjects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
"""Of a list's wrong items the first is told: to tell all of a million takes seconds."""

PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def parse_prompt(value: Any) -> Prompts:
    """One prompt or several, as texts or token ids, to a list of them."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{PROMPT_KINDS}, not {cited(value)}")
    kinds = set(map(type, value))
    if kinds <= {str, list} and len(value) > MAX_PROMPTS:
        raise ValueError(f"may hold at most {MAX_PROMPTS} prompts, but holds {len(value)}")
    if kinds == {str}:
        return list(value)
    if kinds == {int}:
        return [value]
    if kinds == {list} and all(set(map(type, ids)) == {int} for ids in value):
        return list(value)
    raise ValueError(f"{PROMPT_KINDS}, not a mixture or something else: {cited(value)}")


PROMPT_KINDS = (
    "must be a string, a list of strings, a list of token ids or a list of lists of token ids, "
    "none of them empty"
)


def parse_bias(value: Any) -> Any:
    """JSON's names are strings; the token ids that they spell."""
    if not isinstance(value, dict):
        return value
    check_count("logit_bias", value, MAX_LOGIT_BIAS, "entries")
    for token in value:
        if not (isinstance(token, str) and token.isascii() and token.isdigit()):
            raise ValueError(f"must map token ids to numbers, and {cited(token)} is no token id")
    return {int(token): bias for token, bias in value.items()}
