"""MegaInfer: Mixture-of-Experts serving with attention and experts on separate nodes.

`import megainfer` is cheap: the offline `LLM` loads what it needs when it is first used.
"""

from typing import TYPE_CHECKING, Any

from megainfer.frontend.structured_outputs import StructuredOutputsParams
from megainfer.sampling import SamplingParams

if TYPE_CHECKING:
    from megainfer.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "StructuredOutputsParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from megainfer.llm import LLM

        return LLM
    raise AttributeError(f"module 'megainfer' has no attribute {name!r}")
