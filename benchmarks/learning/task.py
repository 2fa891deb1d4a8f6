"""Running sums with a scratchpad: `a3b8c5d9=` is answered `a33b81c56d95`, each digit under its
letter with the sum so far, modulo 10. A reward is for the whole scratchpad, so that it checks
every step; a right last sum alone is worth nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
LETTERS = ascii_lowercase[:16]
SIGNS = (END, *"0123456789", *LETTERS, "=")
GOES_ON = 0.8
"""Of problems with so many digits, the share that has more."""


@dataclass(frozen=True, slots=True)
class Task:
    """longest: digits of a problem at most, for each of which there must be a letter."""

    longest: int = len(LETTERS)

    @property
    def prompt_tokens(self) -> int:
        """At most: two a digit, and the sign at the end."""
        return 2 * self.longest + 1

    @property
    def answer_tokens(self) -> int:
        """At most: three a digit, and the end token."""
        return 3 * self.longest + 1

    @property
    def context(self) -> int:
        """Of both together."""
        return self.prompt_tokens + self.answer_tokens

    def digits(self, random: Random) -> list[int]:
        """Of a problem: 2 to `longest`, few of them long."""
        count = 2
        while count < self.longest and random.random() < GOES_ON:
            count += 1
        return [random.randrange(10) for _ in range(count)]

    def write_problems(self, path: Path, count: int, seed: int) -> Path:
        """As the trainer reads them."""
        random = Random(seed)
        with path.open("w") as file:
            for _ in range(count):
                problem = self.digits(random)
                row = {"prompt": prompt_of(problem), "answer": answer_of(problem)}
                file.write(json.dumps(row) + "\n")
        return path


def prompt_of(problem: Sequence[int]) -> str:
    """
    >>> prompt_of([3, 8, 5, 9])
    'a3b8c5d9='
    """
    named = zip(LETTERS, problem, strict=False)
    return "".join(f"{letter}{digit}" for letter, digit in named) + "="


def answer_of(problem: Sequence[int], random: Random | None = None, sloppy: float = 0.0) -> str:
    """The scratchpad. sloppy: the share of steps with a sum that is anything; those that follow go
    on from it.

    >>> answer_of([3, 8, 5, 9])
    'a33b81c56d95'
    """
    steps, total = [], 0
    for letter, digit in zip(LETTERS, problem, strict=False):
        total = (total + digit) % 10
        if random is not None and random.random() < sloppy:
            total = random.randrange(10)
        steps.append(f"{letter}{digit}{total}")
    return "".join(steps)


def write_tokenizer(folder: Path) -> Tokenizer:
    """A token a sign."""
    tokenizer = Tokenizer(models.BPE({sign: token for token, sign in enumerate(SIGNS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return tokenizer
