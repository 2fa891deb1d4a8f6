"""What the server says about the model that it serves."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megainfer import __version__
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.sampling import RAW


@dataclass(frozen=True, slots=True)
class ServedModel:
    """names: what clients may call it; the first is what it is listed and answered as.

    max_model_len: tokens of prompt and answer together. vocab_size: the model's. created: Unix
    time in seconds at which serving began. defaults: end tokens, and sampling for what a request
    leaves out. folder: where its files are, for compiling grammars. syntax: of its answers.
    shows_tokenizer: whether /tokenizer_info is there. routing_bytes: see `RequestLimits`.
    logprobs_mode: of requests that don't say.
    """

    names: tuple[str, ...]
    max_model_len: int
    vocab_size: int
    created: int
    folder: Path | None = None
    syntax: SyntaxOptions = field(default_factory=SyntaxOptions)
    shows_tokenizer: bool = False
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    routing_bytes: int = 0
    logprobs_mode: str = RAW

    @property
    def fingerprint(self) -> str:
        """What an answer depends on beside the request: the program and the model."""
        return f"megainfer-{__version__}-{self.names[0]}"

    def card(self, name: str) -> dict[str, Any]:
        """The model object of `/v1/models`."""
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "megainfer",
            "root": self.names[0],
            "max_model_len": self.max_model_len,
        }
