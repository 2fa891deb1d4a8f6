"""Fields of OpenAI's API (and some of vLLM's) that would change the answer, but aren't offered.

They are refused by name rather than ignored, unless their value asks for nothing.
"""

from collections.abc import Mapping
from typing import Any

from megainfer.errors import RequestError, cited

# Field -> values that ask for nothing, beside null.
COMMON: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "logits_processors": ([],),
}
COMPLETION: dict[str, tuple[Any, ...]] = {
    **COMMON,
    "suffix": ("",),
}
CHAT: dict[str, tuple[Any, ...]] = {
    **COMMON,
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "store": (False,),
    "chat_template": (),
}


def refuse_not_offered(fields: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises RequestError for the first of these fields that asks for something."""
    for name, neutral in known.items():
        value = fields.get(name)
        if value is not None and not any(_same(value, harmless) for harmless in neutral):
            raise RequestError(f"{name} isn't offered by this server, but is {cited(value)}", name)


def _same(value: Any, harmless: Any) -> bool:
    """Equal and of one type: `best_of: true` asks for something where `1` doesn't."""
    return type(value) is type(harmless) and bool(value == harmless)
