"""Text and tokens of the model that is measured: by a tokenizer of one's own, or by the server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from megainfer.errors import MegaInferError, ModelError
from megainfer.model_folder.resolve import ModelSource, resolve_model
from megainfer.text.tokenizer import Tokenizer


class TextCodec(Protocol):
    """Turns text into token ids and back, without special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class OwnCodec:
    """By the tokenizer of a model folder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size

    @classmethod
    def load(cls, source: str) -> "OwnCodec":
        """source: a folder, or a hub id. Raises ModelError."""
        small = ModelSource(source, weights=False)
        folder: Path = resolve_model(small, lambda stage, fraction: None)
        return cls(Tokenizer.load(folder))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class ServerCodec:
    """By the server's /tokenize and /detokenize. Raises ModelError where it has none."""

    def __init__(self, http: httpx.Client, model: str) -> None:
        self._http, self._model = http, model

    def encode(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        return list(self._ask("/tokenize", body, "tokens"))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._ask("/detokenize", {"tokens": list(ids)}, "prompt"))

    def _ask(self, path: str, body: dict[str, Any], wanted: str) -> Any:
        try:
            response = self._http.post(path, json={"model": self._model, **body})
            response.raise_for_status()
            return response.json()[wanted]
        except httpx.HTTPStatusError as error:
            raise ModelError(
                f"text must be turned into tokens here, and the server's {path} answers "
                f"{error.response.status_code}; name the model's tokenizer with --tokenizer"
            ) from error
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise MegaInferError(f"the server's {path} failed: {error!r}") from error
