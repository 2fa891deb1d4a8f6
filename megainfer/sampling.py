"""How the tokens of one request are chosen, and when it ends."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from megainfer.errors import RequestError

MAX_N = 128
MAX_STOP_STRINGS = 16
ALL_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the field names and defaults are vLLM's.

    temperature: 0 is greedy. top_p: in (0, 1]. top_k: 0 or -1 means the whole vocabulary.
    seed: with the same seed a request gives the same tokens whatever else is served; None draws
    one. max_tokens: None means until the model's context is full. stop: strings that end the text
    (and are not part of it). stop_token_ids: token ids that end it. ignore_eos: go on past the
    end token. logprobs: how many of the best log-probabilities to return a token, beside the
    chosen one's; -1 returns the whole vocabulary's.

    Raises RequestError, naming the field and the value.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = field(default=True)

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple_of("stop", stop, str))
        object.__setattr__(
            self, "stop_token_ids", _tuple_of("stop_token_ids", self.stop_token_ids, int)
        )
        _check_integer("n", self.n, 1, MAX_N)
        _check_integer("top_k", self.top_k, -1, None)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, None)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, ALL_LOGPROBS, None)
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise RequestError("top_p must be above 0 and at most 1, but is 0", "top_p")
        self._check_stop()

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop may hold at most {MAX_STOP_STRINGS} strings, but holds {len(self.stop)}",
                "stop",
            )
        if any(not text for text in self.stop):
            raise RequestError("stop must not hold an empty string", "stop")


def _tuple_of(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable):
        raise RequestError(f"{name} must be a list, but is {values!r}", name)
    result = tuple(values)
    for value in result:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RequestError(f"{name} must hold {kind.__name__} values, not {value!r}", name)
    return result


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, but is {value!r}", name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be {bounds}, but is {value}", name)


def _check_float(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name} must be a number, but is {value!r}", name)
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, but is {value}", name)
