"""What each sequence of a request is sent a copy of, known before any is made."""

from megainfer.errors import RequestError
from megainfer.sampling import SamplingParams

MAX_COPIES = 2**22
"""Token ids and characters of all copies. They are made, checked and sent while nobody else is
heard: half a second of it, and about 80 MB."""


def check_copies(params: SamplingParams, prompts: int) -> None:
    """params: what is to come after each of so many prompts. Raises RequestError when their
    sequences together would take more than MAX_COPIES."""
    sizes = _sizes(params)
    total = prompts * params.n * sum(sizes.values())
    if total <= MAX_COPIES:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    raise RequestError(
        f"{', '.join(sizes)} go to each of {prompts * params.n} sequences "
        f"({prompts} prompts), {total} token ids and characters in all, and may be at most "
        f"{MAX_COPIES}; {largest} is the largest, of {sizes[largest]}: make it shorter, or send "
        "fewer prompts at once",
        largest,
    )


def _sizes(params: SamplingParams) -> dict[str, int]:
    return {
        "allowed_token_ids": len(params.allowed_token_ids),
        "bad_words": sum(map(len, params.bad_words)),
        "logit_bias": len(params.logit_bias),
        "stop_token_ids": len(params.stop_token_ids),
    }
