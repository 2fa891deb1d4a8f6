"""Where prompts come from: random tokens, ShareGPT conversations, or a file of one's own."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megainfer.bench.sample import Sample
from megainfer.bench.text_codec import TextCodec
from megainfer.errors import ConfigError, MegaInferError

DATASETS = ("random", "sharegpt", "custom")
ROUND_TRIPS = 10  # text -> tokens -> text, until a random prompt has its length
SHORTEST, LONGEST_PROMPT, LONGEST_BOTH = 4, 1024, 2048  # what vLLM keeps of ShareGPT


@dataclass(frozen=True)
class RandomPrompts:
    """Token ids below `vocab_size`. Lengths are uniform in [length (1 - r), length (1 + r)] with r
    the range ratio; all prompts begin with the same `prefix` tokens, which count in addition."""

    vocab_size: int
    input_tokens: int = 1024
    output_tokens: int = 128
    range_ratio: float = 0.0
    prefix: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                f"--random-range-ratio must be at least 0 and below 1, not {self.range_ratio:g}"
            )
        if self.prefix < 0 or self.input_tokens < 1 or self.output_tokens < 1:
            raise ConfigError("--random-input-len and --random-output-len must be at least 1")

    def samples(
        self, count: int, random: np.random.Generator, codec: TextCodec | None
    ) -> list[Sample]:
        """As text where there is a codec, else as token ids."""
        prefix = self._draw(self.prefix, random)
        inputs = self._lengths(self.input_tokens, count, random)
        outputs = self._lengths(self.output_tokens, count, random)
        made = []
        for length, output in zip(inputs, outputs, strict=True):
            ids = prefix + self._draw(length, random)
            prompt = ids if codec is None else self._text(ids, random, codec)
            made.append(Sample(prompt, len(ids), output))
        return made

    def _draw(self, length: int, random: np.random.Generator) -> list[int]:
        return [int(token) for token in random.integers(0, self.vocab_size, length)]

    def _lengths(self, length: int, count: int, random: np.random.Generator) -> list[int]:
        low = max(1, math.floor(length * (1 - self.range_ratio)))
        high = math.ceil(length * (1 + self.range_ratio))
        return [int(drawn) for drawn in random.integers(low, high + 1, count)]

    def _text(self, ids: list[int], random: np.random.Generator, codec: TextCodec) -> str:
        """A text of as many tokens: random tokens, decoded, rarely have their own number again."""
        wanted = len(ids)
        text = codec.decode(ids)
        for _ in range(ROUND_TRIPS):
            again = codec.encode(text)
            if len(again) == wanted:
                break
            again = again[:wanted] + self._draw(wanted - len(again[:wanted]), random)
            text = codec.decode(again)
        return text


def sharegpt(
    path: Path,
    count: int,
    random: np.random.Generator,
    codec: TextCodec,
    output_tokens: int | None,
) -> list[Sample]:
    """First questions of conversations, and as many tokens as their answers have (or as told).

    Very short and very long ones are left out, as vLLM does; too few are repeated.
    """
    entries = _json(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path} holds no list of conversations")
    talks = [talk for entry in entries if len(talk := _turns(entry)) >= 2]
    random.shuffle(talks)
    kept: list[Sample] = []
    for talk in talks:
        sample = _question(talk, codec, output_tokens)
        if sample is not None:
            kept.append(sample)
        if len(kept) == count:
            break
    return _repeated(kept, count, path)


def custom(
    path: Path, count: int, output_tokens: int, codec: TextCodec | None = None
) -> list[Sample]:
    """One JSON object a line with `prompt` (a text) and perhaps `output_tokens`, in the file's
    order. The prompts' own tokens are counted where there is a codec."""
    samples = list(_custom_lines(path, output_tokens))[:count]
    if codec is not None:
        samples = [
            replace(sample, prompt_tokens=len(codec.encode(str(sample.prompt))))
            for sample in samples
        ]
    return _repeated(samples, count, path)


def _custom_lines(path: Path, output_tokens: int) -> Iterator[Sample]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            tokens = int(entry.get("output_tokens", output_tokens))
            if not isinstance(entry["prompt"], str):
                raise TypeError("the prompt is no text")
            yield Sample(entry["prompt"], 0, tokens)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f'{path}, line {number}: needs an object such as {{"prompt": "Hello"}} ({error!r})'
            ) from error


def _question(talk: list[str], codec: TextCodec, output_tokens: int | None) -> Sample | None:
    prompt_tokens = len(codec.encode(talk[0]))
    tokens = len(codec.encode(talk[1])) if output_tokens is None else output_tokens
    short = prompt_tokens < SHORTEST or (output_tokens is None and tokens < SHORTEST)
    if short or prompt_tokens > LONGEST_PROMPT or prompt_tokens + tokens > LONGEST_BOTH:
        return None
    return Sample(talk[0], prompt_tokens, tokens)


def _turns(entry: Any) -> list[str]:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    return [str(turn["value"]) for turn in turns or []]


def _repeated(samples: list[Sample], count: int, path: Path) -> list[Sample]:
    if not samples:
        raise ConfigError(f"{path} has no prompt that can be used")
    return [samples[i % len(samples)] for i in range(count)]


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} isn't JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MegaInferError(f"--dataset-path {path} can't be read: {error}") from error
