"""Raw completions by an OpenAI-compatible server: each prompt on its own."""

from collections.abc import Generator
from typing import Any

from megainfer.commands.api_client import ApiClient


class CompletionClient:
    """options: further fields of each request; those that are None aren't sent.

    Raises MegaInferError when the server can't be reached or answers with an error.
    """

    def __init__(
        self, url: str, model: str | None = None, api_key: str | None = None, **options: Any
    ) -> None:
        self._api = ApiClient(url, model, api_key)
        self.url, self.model = self._api.url, self._api.model
        self._options = {name: value for name, value in options.items() if value is not None}

    def close(self) -> None:
        self._api.close()

    def reset(self) -> None:
        """There is nothing to forget."""

    def ask(self, prompt: str) -> Generator[str, None, None]:
        """What follows the prompt, piece by piece. Closing the iterator early hangs up."""
        for event in self._api.stream("/v1/completions", {"prompt": prompt, **self._options}):
            for choice in event["choices"]:
                if piece := choice.get("text"):
                    yield piece
