"""How the tokens of one request are chosen, and when it ends."""

import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured.params import StructuredOutputsParams

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024  # of each; so much text is held back at most
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_BIAS = 100.0  # and the least is its negative
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARACTERS = 256
MAX_PROMPT_LOGPROBS = 20  # a prompt may be long, and its log-probabilities go in one message
MAX_PRIORITY = 2**31 - 1  # and the least is its negative
MAX_COUNT = 2**31 - 1  # of tokens; beyond any vocabulary and context
MAX_ALLOWED_COPIES = 2**19  # the largest vocabularies, twice
ALL_LOGPROBS = -1
RAW, PROCESSED = LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the field names and defaults are vLLM's.

    temperature: 0 is greedy. top_p: 0 to 1; 0 keeps the best token. top_k: 0 or -1 means the whole
    vocabulary. min_p: the least share of the likeliest token's probability. seed: with the same
    seed a request gives the same tokens whatever else is served; None draws one.

    max_tokens: None means until the model's context is full. min_tokens: nothing ends the sequence
    before. stop: strings that end the text, and are part of it only with
    include_stop_str_in_output, as is the token that ends it. stop_token_ids: token ids that end it.
    ignore_eos: go on past the end token.

    presence_penalty, frequency_penalty: subtracted from the logits of tokens that were generated,
    once or each time. repetition_penalty: divides (below 0: multiplies) the logits of tokens in
    prompt or output; 1 is none. logit_bias: token id -> what is added to its logit.
    allowed_token_ids: no others; none given means all. bad_words: texts that aren't generated.

    logprobs: how many of the best log-probabilities to return a token, beside the chosen one's; -1
    returns the whole vocabulary's. logprobs_mode: raw_logprobs are the model's own,
    processed_logprobs those of the distribution that is drawn from, after edits, temperature and
    cuts (of a greedy token: after the edits); what was cut isn't among the best then.
    prompt_logprobs: the model's own of the prompt's tokens; the prefix cache doesn't help such a
    request.

    stale_prefix: whether the prefix cache may give what earlier weights have computed (see
    `LLM.update_weights`): of the prompt, and of the request's own tokens where weights change
    meanwhile. Cheaper, but its tokens aren't what the new weights alone would give.

    return_routed_experts: tell which experts each token chose, where the instance keeps that.

    structured_outputs: what the text must look like; it then ends where that allows it.

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
    skip_special_tokens: bool = True
    min_p: float = 0.0
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    return_routed_experts: bool = False
    stale_prefix: bool = False
    logprobs_mode: str = RAW

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple_of("stop", stop, str))
        for name, kind in (
            ("stop_token_ids", int),
            ("allowed_token_ids", int),
            ("bad_words", str),
        ):
            object.__setattr__(self, name, _tuple_of(name, getattr(self, name), kind))
        self._check_numbers()
        self._check_lengths()
        _check_texts("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        _check_shape(self.structured_outputs)
        if self.logprobs_mode not in LOGPROBS_MODES:
            known = " or ".join(LOGPROBS_MODES)
            message = f"logprobs_mode must be {known}, not {cited(self.logprobs_mode)}"
            raise RequestError(message, "logprobs_mode")
        self._check_copies()

    def _check_copies(self) -> None:
        """Each of the n sequences has its own of what may be as long as the vocabulary."""
        copies = self.n * len(self.allowed_token_ids)
        if copies > MAX_ALLOWED_COPIES:
            raise RequestError(
                f"allowed_token_ids holds {len(self.allowed_token_ids)} for each of n = {self.n}; "
                f"together they may be at most {MAX_ALLOWED_COPIES}",
                "allowed_token_ids",
            )

    def _check_numbers(self) -> None:
        for name, low, high in FLOAT_RANGES:
            check_float(name, getattr(self, name), low, high)
        check_integer("n", self.n, 1, MAX_N)
        check_integer("top_k", self.top_k, -1, MAX_COUNT)
        if self.seed is not None:
            check_integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, ALL_LOGPROBS, None)
        if self.prompt_logprobs is not None:
            check_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_PROMPT_LOGPROBS)

    def _check_lengths(self) -> None:
        check_integer("min_tokens", self.min_tokens, 0, MAX_COUNT)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1, None)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens must be at most max_tokens, which is {self.max_tokens}, but is "
                    f"{self.min_tokens}",
                    "min_tokens",
                )
        check_count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS, "token ids")


FLOAT_RANGES = (
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.01, 100.0),  # beyond, logits would leave float32
)


def _tuple_of(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable):
        raise RequestError(f"{name} must be a list, but is {cited(values)}", name)
    result = tuple(values)
    for value in result:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RequestError(f"{name} must hold {kind.__name__} values, not {cited(value)}", name)
    return result


def _checked_bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        message = f"logit_bias must map token ids to numbers, but is {cited(bias)}"
        raise RequestError(message, "logit_bias")
    check_count("logit_bias", bias, MAX_LOGIT_BIAS, "entries")
    for token, value in bias.items():
        check_integer("logit_bias", token, 0, None)
        check_float("logit_bias", value, -MAX_BIAS, MAX_BIAS)
    return dict(bias)


def _check_shape(wanted: object) -> None:
    if wanted is not None and not isinstance(wanted, StructuredOutputsParams):
        message = f"structured_outputs must be StructuredOutputsParams, not {cited(wanted)}"
        raise RequestError(message, "structured_outputs")


def _check_texts(name: str, texts: tuple[str, ...], most: int, longest: int) -> None:
    check_count(name, texts, most, "strings")
    if not all(texts):
        raise RequestError(f"{name} must not hold an empty string", name)
    for text in texts:
        if len(text) > longest:
            message = f"{name} may hold strings of at most {longest} characters, not {len(text)}"
            raise RequestError(message, name)


def check_count(name: str, values: Sized, most: int, what: str) -> None:
    """Raises RequestError for more than `most` values."""
    if len(values) > most:
        raise RequestError(f"{name} may hold at most {most} {what}, but holds {len(values)}", name)


def check_integer(name: str, value: object, low: int, high: int | None) -> None:
    """Raises RequestError for anything but an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, but is {cited(value)}", name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be {bounds}, but is {value}", name)


def check_float(name: str, value: object, low: float, high: float) -> None:
    """Raises RequestError for anything but a finite number in [low, high]."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name} must be a number, but is {cited(value)}", name)
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, but is {value}", name)
