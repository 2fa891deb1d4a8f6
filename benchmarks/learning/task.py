"""Sums with a scratchpad: `3859=` is answered `3,1;8,1;5,6;9,5.`, each digit with the sum so far,
modulo 10. A reward is for the whole scratchpad: every step is checked by `exact`."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
SIGNS = (END, *"0123456789", "=", ",", ";", ".")
LONGEST = 12
"""Digits of a problem; a step of the scratchpad has 4 tokens."""
MAX_ANSWER = 4 * LONGEST + 1


def digits(random: Random) -> list[int]:
    """Of a problem: 2 to LONGEST, few of them long."""
    count = 2
    while count < LONGEST and random.random() < 0.75:
        count += 1
    return [random.randrange(10) for _ in range(count)]


def prompt_of(problem: Sequence[int]) -> str:
    return "".join(map(str, problem)) + "="


def answer_of(problem: Sequence[int], random: Random | None = None, sloppy: float = 0.0) -> str:
    """The scratchpad. sloppy: the share of steps with a sum that is anything; those that follow go
    on from it."""
    steps, total = [], 0
    for digit in problem:
        total = (total + digit) % 10
        if random is not None and random.random() < sloppy:
            total = random.randrange(10)
        steps.append(f"{digit},{total}")
    return ";".join(steps) + "."


def write_problems(path: Path, count: int, seed: int) -> Path:
    """Problems as the trainer reads them."""
    random = Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            problem = digits(random)
            row = {"prompt": prompt_of(problem), "answer": answer_of(problem)}
            file.write(json.dumps(row) + "\n")
    return path


def write_tokenizer(folder: Path) -> Tokenizer:
    """A token a sign."""
    tokenizer = Tokenizer(models.BPE({sign: token for token, sign in enumerate(SIGNS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return tokenizer
