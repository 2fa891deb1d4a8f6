"""Running sums with a scratchpad: `A3B4C1D4=` is answered `a3yb4xc1yd4x`, each digit under its
letter with the sum so far, modulo 5 and spelled `v` to `z`. A reward is for the whole scratchpad,
so that it checks every step; a right last sum alone is worth nothing."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
LETTERS = ascii_lowercase[:20]
NAMES = ascii_uppercase[: len(LETTERS)]
BASE = 5
"""Digits are below it."""
SUMS = ascii_lowercase[-BASE:]
NAMED = tuple(name + digit for name in NAMES for digit in digits[:BASE])
"""Digits of a problem: a token each, so that a digit is found by its letter at once."""
SIGNS = (END, *digits[:BASE], *SUMS, *LETTERS, *NAMES, "=", *NAMED)
MEDIAN, SIGMA = 4.0, 1.0
"""Of the log-normal numbers of digits: half of the problems are short, and few are as long as they
may be, as answers of models that reason."""


@dataclass(frozen=True, slots=True)
class Task:
    """longest: digits of a problem at most, for each of which there must be a letter."""

    longest: int = len(LETTERS)

    @property
    def prompt_tokens(self) -> int:
        """At most: one a digit, and the sign at the end."""
        return self.longest + 1

    @property
    def answer_tokens(self) -> int:
        """At most: three a digit, and the end token."""
        return 3 * self.longest + 1

    @property
    def context(self) -> int:
        """Of both together."""
        return self.prompt_tokens + self.answer_tokens

    def digits(self, random: Random, median: float = MEDIAN) -> list[int]:
        """Of a problem: 2 to `longest`, few of them long."""
        count = round(random.lognormvariate(math.log(median), SIGMA))
        count = min(max(count, 2), self.longest)
        return [random.randrange(BASE) for _ in range(count)]

    def write_problems(self, path: Path, count: int, seed: int) -> Path:
        """As the trainer reads them; a file that is there stays: another run may be reading it."""
        if not path.exists():
            random = Random(seed)
            problems = [self.digits(random) for _ in range(count)]
            rows = [{"prompt": prompt_of(own), "answer": answer_of(own)} for own in problems]
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path


def read_problems(path: Path) -> list[tuple[str, str]]:
    """Prompt and answer of each that was written there."""
    rows = map(json.loads, path.read_text().splitlines())
    return [(row["prompt"], row["answer"]) for row in rows]


def prompt_of(problem: Sequence[int]) -> str:
    """
    >>> prompt_of([3, 4, 1, 4])
    'A3B4C1D4='
    """
    return "".join(f"{name}{digit}" for name, digit in zip(NAMES, problem, strict=False)) + "="


def answer_of(problem: Sequence[int], random: Random | None = None, sloppy: float = 0.0) -> str:
    """The scratchpad. sloppy: the share of steps with a sum that is anything; those that follow go
    on from it.

    >>> answer_of([3, 4, 1, 4])
    'a3yb4xc1yd4x'
    """
    steps, total = [], 0
    for letter, digit in zip(LETTERS, problem, strict=False):
        total = (total + digit) % BASE
        if random is not None and random.random() < sloppy:
            total = random.randrange(BASE)
        steps.append(f"{letter}{digit}{SUMS[total]}")
    return "".join(steps)


def write_tokenizer(folder: Path) -> Tokenizer:
    """A token a sign."""
    merges = [(name[0], name[1]) for name in NAMED]
    tokenizer = Tokenizer(models.BPE({sign: token for token, sign in enumerate(SIGNS)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return tokenizer
