"""How much an answer may hold, known before anything is computed of it."""

from collections.abc import Iterable

from megainfer.errors import RequestError
from megainfer.sampling import SamplingParams

MAX_LOGPROBS = 2**22
"""Log-probabilities of one answer, which is kept whole, or waits for a client that reads slowly:
about 90 bytes each. 199,728 tokens with the 20 best and their own."""


def check_logprobs(prompts: Iterable[tuple[int, SamplingParams]], max_model_len: int) -> None:
    """prompts: their tokens, and what is to come after them.

    Raises RequestError when there may be more log-probabilities than an answer may hold.
    """
    asked = [
        (length, params, most_logprobs(length, params, max_model_len)) for length, params in prompts
    ]
    if (total := sum(most for _, _, most in asked)) <= MAX_LOGPROBS:
        return
    length, params, _ = max(asked, key=lambda prompt: prompt[2])
    param = "prompt_logprobs" if params.logprobs is None else "logprobs"
    raise RequestError(
        f"the answer could hold {total} log-probabilities, and may hold {MAX_LOGPROBS}: "
        f"{len(asked)} prompts (the largest part from one of {length} tokens), n = {params.n}, "
        f"max_tokens = {params.max_tokens}, logprobs = {params.logprobs}, prompt_logprobs = "
        f"{params.prompt_logprobs}; ask for fewer tokens, prompts, answers or log-probabilities",
        param,
    )


def most_logprobs(length: int, params: SamplingParams, max_model_len: int) -> int:
    """Of a prompt and its answers: each position has its best ones and its own token."""
    room = max(max_model_len - length, 0)
    generated = room if params.max_tokens is None else min(params.max_tokens, room)
    of_output = 0 if params.logprobs is None else generated * (params.logprobs + 1)
    of_prompt = 0 if params.prompt_logprobs is None else length * (params.prompt_logprobs + 1)
    return params.n * (of_output + of_prompt)
