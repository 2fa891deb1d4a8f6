"""The forms in which a prompt may be given offline."""

from collections.abc import Mapping, Sequence
from typing import Any

from megainfer.errors import RequestError

Prompt = str | list[int]
GivenPrompt = Prompt | Mapping[str, Any]
"""A text, token ids, or vLLM's objects: `{"prompt": ...}`, `{"prompt_token_ids": ...}`."""

TEXT, IDS = "prompt", "prompt_token_ids"


def as_prompts(given: GivenPrompt | Sequence[GivenPrompt]) -> list[Prompt]:
    """One prompt or several. Raises RequestError naming what is none."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [as_prompt(given)]
    each: list[Any] = list(given)
    if each and isinstance(each[0], int):
        return [each]  # one prompt of token ids
    return [as_prompt(prompt) for prompt in each]


def as_prompt(given: Any) -> Prompt:
    """A single one. Raises RequestError."""
    if isinstance(given, Mapping):
        return _unwrapped(given)
    if not isinstance(given, Sequence):
        raise RequestError(
            f"a prompt is a text or a list of token ids, not {given!r:.80}", "prompts"
        )
    return given if isinstance(given, str) else list(given)


def _unwrapped(given: Mapping[str, Any]) -> Prompt:
    unknown = [name for name, value in given.items() if name not in (TEXT, IDS) and value]
    if unknown:
        raise RequestError(
            f"a prompt as an object has {TEXT} or {IDS}; {', '.join(unknown)} isn't served",
            "prompts",
        )
    inner = given.get(IDS) if given.get(IDS) is not None else given.get(TEXT)
    if inner is None or isinstance(inner, Mapping):
        raise RequestError(
            f"a prompt as an object has {TEXT} or {IDS}, not {given!r:.80}", "prompts"
        )
    return as_prompt(inner)
