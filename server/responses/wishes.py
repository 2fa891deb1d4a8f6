"""What else a request of /v1/responses may ask for: obeyed, or refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from megainfer.errors import RequestError, cited
from server.openai.translation import refuse

LOGPROBS = "message.output_text.logprobs"
SAYS_NOTHING = frozenset(
    (
        "reasoning.encrypted_content",  # here reasoning comes as it is
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    )
)
"""Of `include`: parts of what this server never answers with."""
NOT_OFFERED = "isn't offered by this server"
KEEP_ALL = -1  # of the prompt, that the context has room for


def refuse_wishes(
    include: Iterable[str], text: Mapping[str, Any], reasoning: Mapping[str, Any]
) -> None:
    """Raises RequestError for the first that isn't offered. Summaries of reasoning are: it comes
    itself."""
    for name in include:
        if name != LOGPROBS and name not in SAYS_NOTHING:
            raise RequestError(f"include: {cited(name)} {NOT_OFFERED}", "include")
    refuse({"text.verbosity": text.get("verbosity")}, {"text.verbosity": ("medium",)}, NOT_OFFERED)
    neutral = {"reasoning.context": ("auto",), "reasoning.mode": ("standard",)}
    refuse({name: reasoning.get(name.split(".")[1]) for name in neutral}, neutral, NOT_OFFERED)


def wants_logprobs(include: Iterable[str], top: int | None) -> bool:
    """Those of the text's tokens."""
    return LOGPROBS in include or bool(top)


def truncated(truncation: str | None) -> int | None:
    """`auto` cuts what doesn't fit off the prompt's beginning. Raises RequestError."""
    if truncation not in (None, "auto", "disabled"):
        raise RequestError(
            f"truncation must be auto or disabled, not {cited(truncation)}", "truncation"
        )
    return KEEP_ALL if truncation == "auto" else None
