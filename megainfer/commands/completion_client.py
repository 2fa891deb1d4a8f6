"""Raw completions by an OpenAI-compatible server: each prompt on its own."""

from collections.abc import Generator
from typing import Any

from megainfer.commands.api_client import ApiClient
from megainfer.commands.talk.answer import Figures, Piece
from megainfer.commands.talk.settings import Settings


class CompletionClient:
    """options: see `Settings`. figures: of the latest answer.

    Raises MegaInferError when the server can't be reached or answers with an error.
    """

    def __init__(
        self, url: str, model: str | None = None, api_key: str | None = None, **options: Any
    ) -> None:
        self._api = ApiClient(url, model, api_key)
        self.url, self.model = self._api.url, self._api.model
        self.settings = Settings(**options)
        self.figures = Figures()
        self._latest: str | None = None

    def close(self) -> None:
        self._api.close()

    def reset(self) -> None:
        """There is nothing to forget but the latest prompt."""
        self._latest = None

    def take_back(self) -> str | None:
        """The latest prompt, if there is one."""
        return self._latest

    def ask(self, prompt: str) -> Generator[Piece, None, None]:
        """What follows the prompt, piece by piece. Closing the iterator early hangs up."""
        self._latest, self.figures = prompt, Figures()
        usage = {"stream_options": {"include_usage": True}}
        body = {"prompt": prompt, **usage, **self.settings.fields()}
        for event in self._api.stream("/v1/completions", body):
            if counts := event.get("usage"):
                self.figures.tokens = counts["completion_tokens"]
            for choice in event["choices"]:
                self.figures.finish = choice.get("finish_reason") or self.figures.finish
                if text := choice.get("text"):
                    self.figures.add_piece()
                    yield Piece(text)
