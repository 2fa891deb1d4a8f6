"""A problem, as a line or a row of a file holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megainfer.errors import ConfigError, cited

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Problem:
    """prompt: a text, or a chat's messages. answer: what a reward compares responses with. place:
    its file and line, as messages name it."""

    prompt: str | Messages
    answer: str
    place: str

    @property
    def text(self) -> str:
        """The prompt as reward functions see it: of a chat what the last message says."""
        if isinstance(self.prompt, str):
            return self.prompt
        return str(self.prompt[-1]["content"])


@dataclass(frozen=True, slots=True)
class Keys:
    """The fields, or columns, in which prompt and answer stand."""

    prompt: str = "prompt"
    answer: str = "answer"


def read_problem(entry: Any, keys: Keys, place: str) -> Problem:
    """From a line's object or a row. Raises ConfigError, which names the place."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{place}: needs an object with {keys.prompt!r} and {keys.answer!r}")
    for key in (keys.prompt, keys.answer):
        if key not in entry:
            there = cited(sorted(map(str, entry)))
            raise ConfigError(
                f"{place}: has no {key!r}, only {there}; --data.prompt-key and "
                "--data.answer-key name others"
            )
    return Problem(_prompt(entry[keys.prompt], place), _answer(entry[keys.answer], place), place)


def _prompt(value: Any, place: str) -> str | Messages:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(_is_message(each) for each in value):
        return value
    raise ConfigError(
        f"{place}: a prompt is a text, or a list of messages with role and content, not "
        f"{cited(value)}"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _answer(value: Any, place: str) -> str:
    """A number is taken too: data often has it as one."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{place}: an answer is a text or a number, not {cited(value)}")
