"""What a request holds of memory until its end, in the API server and on attention nodes, known
before anything is made of it."""

from collections.abc import Iterable

from megainfer.sampling import SamplingParams
from megainfer.structured.grammar import Grammar
from server.openai.answer_size import most_logprobs

A_SEQUENCE = 12_000
"""Bytes of its own: choice, text and parsers in the API server, state on its node."""
A_PROMPT_ID = 80
"""Bytes, in the API server and on a node."""
A_COPIED_ID = 12
"""Bytes more for each sequence of a prompt: its own list of tokens, and its blocks' names."""
A_LOGPROB = 90
AN_EDIT = 100
"""Bytes for each token id or character that goes with a prompt."""
A_COPIED_EDIT = 8


def request_bytes(
    prompts: Iterable[tuple[int, SamplingParams]], max_model_len: int, grammar: Grammar | None
) -> int:
    """prompts: their tokens, and what is to come after them."""
    total = 0 if grammar is None else grammar.cost
    for length, params in prompts:
        edits = _edits(params)
        once = A_PROMPT_ID * length + AN_EDIT * edits
        each = A_SEQUENCE + A_COPIED_ID * length + A_COPIED_EDIT * edits
        total += once + params.n * each
        total += A_LOGPROB * most_logprobs(length, params, max_model_len)
    return total


def _edits(params: SamplingParams) -> int:
    lists = (params.allowed_token_ids, params.logit_bias, params.stop_token_ids)
    texts = (*params.bad_words, *params.stop)
    return sum(map(len, lists)) + sum(map(len, texts))
