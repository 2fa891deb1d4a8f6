"""The requests that both checkouts are given: always the same ones."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from comparison.models import VOCABULARY

_GREEDY = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 5}
_SEEDED = {"temperature": 1.0, "max_tokens": 24, "logprobs": 2}
_LENGTHS = (1, 2, 3, 15, 16, 17, 31, 65, 130, 230)


@dataclass(frozen=True)
class FixedRequest:
    """A prompt of token ids and the fields of `SamplingParams`; kind: what it is there for."""

    kind: str
    prompt: list[int]
    params: Mapping[str, Any] = field(default_factory=dict)


def fixed_requests() -> list[FixedRequest]:
    """Every way of choosing tokens, over prompts from one token to some hundred."""
    draw = random.Random(0)
    return [
        FixedRequest(kind, prompt, params)
        for requests in (_plain(draw), _filtered(draw), _edited(draw), _scored(draw), _shared(draw))
        for kind, prompt, params in requests
    ]


Requests = Iterator[tuple[str, list[int], dict[str, Any]]]


def _prompt(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(length)]


def _plain(draw: random.Random) -> Requests:
    for length in _LENGTHS:
        yield "greedy", _prompt(draw, length), _GREEDY
    for seed, length in enumerate((4, 40, 140)):
        yield "seeded", _prompt(draw, length), {**_SEEDED, "seed": seed}


def _filtered(draw: random.Random) -> Requests:
    filters: list[dict[str, Any]] = [
        {"top_p": 0.9},
        {"top_k": 12},
        {"min_p": 0.05},
        {"top_p": 0.8, "top_k": 40, "min_p": 0.01, "temperature": 1.4},
        {"top_p": 0.95, "temperature": 0.7},
    ]
    for seed, params in enumerate(filters):
        name = " ".join(params)
        yield name, _prompt(draw, 5 + 20 * seed), {**_SEEDED, "seed": 100 + seed, **params}


def _edited(draw: random.Random) -> Requests:
    edits: list[dict[str, Any]] = [
        {"frequency_penalty": 0.8, "presence_penalty": 0.4},
        {"repetition_penalty": 1.3},
        {"logit_bias": {7: 4.0, 8: -6.0}},
        {"allowed_token_ids": list(range(3, 60))},
        {"stop_token_ids": list(range(200, 240)), "min_tokens": 9},
    ]
    for seed, params in enumerate(edits):
        name, prompt = " ".join(params), _prompt(draw, 9 + 12 * seed)
        yield f"{name}, greedy", prompt, {**_GREEDY, **params}
        yield f"{name}, seeded", prompt, {**_SEEDED, "seed": 200 + seed, **params}


def _scored(draw: random.Random) -> Requests:
    for length in (2, 33, 150):
        yield "prompt_logprobs", _prompt(draw, length), {**_GREEDY, "prompt_logprobs": 4}
    yield "n=2", _prompt(draw, 20), {**_SEEDED, "seed": 300, "n": 2}
    yield "n=2 prompt_logprobs", _prompt(draw, 70), {**_SEEDED, "seed": 301, "n": 2, **_SCORES}
    yield "without logprobs", _prompt(draw, 25), {**_GREEDY, "logprobs": None}
    yield "all logprobs", _prompt(draw, 18), {**_GREEDY, "logprobs": -1, "max_tokens": 4}


_SCORES = {"prompt_logprobs": 2}


def _shared(draw: random.Random) -> Requests:
    """Prefixes that end within a block of the cache and at its border."""
    for shared in (64, 91):
        prefix = _prompt(draw, shared)
        for length in (1, 6, 30):
            yield f"{shared} tokens shared", prefix + _prompt(draw, length), _GREEDY
