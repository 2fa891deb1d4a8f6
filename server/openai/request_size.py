"""How much a request asks for, known before anything is made of it: memory in the API server and on
attention nodes, log-probabilities in the answer, and what goes with each sequence."""

from collections.abc import Iterable

from megainfer.errors import RequestError
from megainfer.sampling import SamplingParams
from megainfer.structured.grammar import Grammar

MAX_LOGPROBS = 2**22
"""Log-probabilities of one answer, which is kept whole, or waits for a client that reads slowly:
about 90 bytes each. 199,728 tokens with the 20 best and their own."""
MAX_COPIES = 2**22
"""Token ids and characters of all copies. A node looks at them at each step of each sequence; those
of a prompt are sent once, while nobody else is heard."""
BIAS_COST = 4  # an entry is a number as well, and in a dictionary
A_SEQUENCE = 12_000
"""Bytes of its own: choice, text and parsers in the API server, state on its node."""
A_PROMPT_ID = 80
"""Bytes, in the API server and on a node."""
A_COPIED_ID = 12
"""Bytes more for each sequence of a prompt: its own list of tokens, and its blocks' names."""
A_LOGPROB = 90
MATCHERS_A_GRAMMAR = 16
"""So many sequences that follow a grammar take as much memory as the grammar."""
AN_EDIT = 100
"""Bytes for each token id or character that goes with a prompt."""
A_COPIED_EDIT = 8
MAX_ROUTING_BYTES = 2**24
"""Of one answer. They are told as text, at once."""
ROUTING_COPIES = 4
"""Parts, the whole, as text, and that in the answer."""


def request_bytes(
    prompts: Iterable[tuple[int, SamplingParams]], max_model_len: int, grammar: Grammar | None
) -> int:
    """prompts: their tokens, and what is to come after them."""
    grammar_bytes = 0 if grammar is None else grammar.cost
    total = grammar_bytes
    for length, params in prompts:
        edits = _edits(params)
        once = A_PROMPT_ID * length + AN_EDIT * edits
        each = (
            A_SEQUENCE
            + grammar_bytes // MATCHERS_A_GRAMMAR
            + A_COPIED_ID * length
            + A_COPIED_EDIT * edits
        )
        total += once + params.n * each
        total += A_LOGPROB * most_logprobs(length, params, max_model_len)
    return total


def routing_bytes(
    prompts: Iterable[tuple[int, SamplingParams]], max_model_len: int, a_token: int
) -> int:
    """What telling the experts of all tokens takes, where that is wanted.

    prompts: their tokens, and what is to come after them. a_token: bytes. Raises RequestError where
    one answer's are too many.
    """
    total = 0
    for length, params in prompts:
        if params.return_routed_experts:
            total += params.n * (length + _generated(length, params, max_model_len)) * a_token
    if total > MAX_ROUTING_BYTES:
        raise RequestError(
            f"return_routed_experts of this many tokens could take {total} bytes, {a_token} a "
            f"token, and may take {MAX_ROUTING_BYTES}; ask for fewer tokens, prompts or answers",
            "return_routed_experts",
        )
    return ROUTING_COPIES * total


def _edits(params: SamplingParams) -> int:
    lists = (params.allowed_token_ids, params.logit_bias, params.stop_token_ids)
    texts = (*params.bad_words, *params.stop)
    return sum(map(len, lists)) + sum(map(len, texts))


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
    generated = _generated(length, params, max_model_len)
    of_output = 0 if params.logprobs is None else generated * (params.logprobs + 1)
    of_prompt = 0 if params.prompt_logprobs is None else length * (params.prompt_logprobs + 1)
    return params.n * (of_output + of_prompt)


def _generated(length: int, params: SamplingParams, max_model_len: int) -> int:
    """Tokens of an answer, at most."""
    room = max(max_model_len - length, 0)
    return room if params.max_tokens is None else min(params.max_tokens, room)


def check_copies(params: SamplingParams, prompts: int) -> None:
    """params: what is to come after each of so many prompts. Raises RequestError when their
    sequences together would take more than MAX_COPIES."""
    sizes = _sizes(params)
    total = prompts * params.n * sum(sizes.values())
    if total <= MAX_COPIES:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    raise RequestError(
        f"{', '.join(sizes)} go to each of {prompts * params.n} sequences ({prompts} prompts), "
        f"{total} token ids and characters in all (an entry of logit_bias counts as {BIAS_COST}), "
        f"and may be at most {MAX_COPIES}; {largest} is the largest, of {sizes[largest]}: make it "
        "shorter, or send fewer prompts at once",
        largest,
    )


def _sizes(params: SamplingParams) -> dict[str, int]:
    return {
        "allowed_token_ids": len(params.allowed_token_ids),
        "bad_words": sum(map(len, params.bad_words)),
        "logit_bias": BIAS_COST * len(params.logit_bias),
        "stop_token_ids": len(params.stop_token_ids),
    }
