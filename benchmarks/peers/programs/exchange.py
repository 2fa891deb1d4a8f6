"""Commands on standard input, answers on standard output, a JSON object a line.

Every engine's program speaks this, each in an environment of its own, so it needs nothing but the
standard library. First a program says that it is ready:

    {"ready": true}

Then, for every command, how long it took, in seconds, and what else the engine can tell, such as
`first_seconds`, the part of it that gave all first tokens:

    {"prompts": [[5, 17], [80, 3]], "max_tokens": 64}
    {"seconds": 0.25}

It ends when its standard input does.
"""

import json
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], dict[str, Any]]


class Exchange:
    """Takes standard output for the answers; what else is printed goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def serve(self, generate: Generate) -> None:
        """generate: from prompts of token ids and the number of tokens wanted of each."""
        self._say({"ready": True})
        for line in sys.stdin:
            command = json.loads(line)
            self._say(generate(command["prompts"], command["max_tokens"]))

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def timed(generate: Callable[[Prompts, int], list[int]]) -> Generate:
    """generate: returns how many tokens each prompt got, which must be those asked for."""

    def answer(prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        started = monotonic()
        counts = generate(prompts, max_tokens)
        seconds = monotonic() - started
        check_counts(counts, prompts, max_tokens)
        return {"seconds": seconds}

    return answer


def check_counts(counts: list[int], prompts: Prompts, max_tokens: int) -> None:
    """Raises RuntimeError: a time for fewer tokens would be compared with one for all."""
    if counts != [max_tokens] * len(prompts):
        raise RuntimeError(f"{len(prompts)} x {max_tokens} tokens were asked for, not {counts}")
