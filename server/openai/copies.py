"""What each sequence of a request is sent a copy of, known before any is made."""

from megainfer.errors import RequestError
from megainfer.sampling import SamplingParams

MAX_COPIES = 2**22
"""Token ids and characters of all copies. They are made, checked and sent while nobody else is
heard: half a second of it, and about 80 MB."""
BIAS_COST = 4  # an entry is a number as well, and in a dictionary


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
