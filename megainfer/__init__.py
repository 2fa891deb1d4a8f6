"""MegaInfer: Mixture-of-Experts serving with attention and experts on separate nodes.

`import megainfer` loads nothing: each name brings what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megainfer.async_llm import AsyncLLM
    from megainfer.llm import LLM
    from megainfer.sampling import SamplingParams
    from megainfer.structured.params import StructuredOutputsParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "StructuredOutputsParams", "__version__"]

_HOMES = {
    "AsyncLLM": "megainfer.async_llm",
    "LLM": "megainfer.llm",
    "SamplingParams": "megainfer.sampling",
    "StructuredOutputsParams": "megainfer.structured.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'megainfer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
