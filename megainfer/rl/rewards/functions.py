"""Reward functions that may take long or fail: `worker` calls them in a process of their own."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from megainfer.errors import ConfigError
from megainfer.rl.rewards.rules import last_match
from megainfer.rl.rewards.score import Attempt

Function = Callable[[Attempt], Any]


def load(spec: str) -> Function:
    """The function that `regex:PATTERN`, `math-verify` or `module:function` names.

    Raises ConfigError where there is none, and whatever a user's module raises on import.
    """
    if spec == "math-verify":
        return math_verify()
    kind, _, rest = spec.partition(":")
    return pattern(rest) if kind == "regex" else of_user(kind, rest)


def pattern(text: str) -> Function:
    """Whether the last match in the response is the problem's answer, but for white space around
    both: of the match its first group, where there is one, else all of it. Raises ConfigError."""
    try:
        expression = re.compile(text)
    except (re.error, RecursionError) as error:
        raise ConfigError(f"reward: {text!r} is no regular expression: {error}") from error
    group = min(expression.groups, 1)

    def function(attempt: Attempt) -> float:
        found = last_match(expression, attempt.response)
        said = None if found is None else found.group(group)
        return float(said is not None and said.strip() == attempt.answer.strip())

    return function


def math_verify() -> Function:
    """Whether the response's mathematical expression equals the answer's. Raises ConfigError."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError(
            "reward: math-verify isn't installed; pip install 'megainfer[rl]'"
        ) from error

    def function(attempt: Attempt) -> float:
        answer = attempt.answer
        # A bare answer is an expression; without a sign of that, only plain numbers are found.
        expected = parse(answer if "$" in answer or "\\" in answer else f"${answer}$")
        if not expected:
            raise ValueError(f"the problem's answer {answer!r:.60} has no expression")
        return float(verify(expected, parse(attempt.response)))

    return function


def of_user(module: str, name: str) -> Function:
    """`function(prompt, response, answer)`, three texts, from a module that can be imported."""
    try:
        function = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the user's module is there and lacks something
        raise ConfigError(f"reward: there is no module {module!r} to import") from error
    except AttributeError as error:
        raise ConfigError(f"reward: module {module!r} has no {name!r}") from error
    if not callable(function):
        raise ConfigError(f"reward: {name!r} of module {module!r} is no function")
    return lambda attempt: function(attempt.prompt, attempt.response, attempt.answer)
