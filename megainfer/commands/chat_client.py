"""A conversation with an OpenAI-compatible server, answer by answer."""

from collections.abc import Generator
from typing import Any

from megainfer.commands.api_client import ApiClient
from megainfer.commands.talk.answer import Figures, Piece
from megainfer.commands.talk.settings import Settings
from megainfer.errors import MegaInferError


class ChatClient:
    """One conversation.

    system: the system prompt, which may be changed. options: see `Settings`. figures: of the latest
    answer. Raises MegaInferError when the server can't be reached or answers with an error.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        system: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        self._api = ApiClient(url, model, api_key)
        self.url, self.model = self._api.url, self._api.model
        self.system: str | None = system
        self.settings = Settings(**options)
        self.figures = Figures()
        self._turns: list[dict[str, str]] = []
        self._latest: str | None = None

    @property
    def history(self) -> list[dict[str, str]]:
        """Its messages, the system message among them."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._turns]

    def close(self) -> None:
        self._api.close()

    def reset(self) -> None:
        """Forget all but the system message."""
        self._turns, self._latest = [], None

    def take_back(self) -> str | None:
        """The latest question, which is forgotten with its answer; None where there is none."""
        if self._turns and self._turns[-2]["content"] == self._latest:
            del self._turns[-2:]
        return self._latest

    def ask(self, message: str) -> Generator[Piece, None, None]:
        """The answer, piece by piece. Closing the iterator early hangs up, which stops the server.

        Question and answer, as far as it came, join the history; after an error neither does.
        What was only thought doesn't.
        """
        self._latest, self.figures = message, Figures()
        question = {"role": "user", "content": message}
        answer: list[str] = []
        try:
            for piece in self._pieces([*self.history, question]):
                if not piece.reasoning:
                    answer.append(piece.text)
                yield piece
        except MegaInferError:
            answer.clear()
            raise
        finally:
            if answer:
                self._turns += [question, {"role": "assistant", "content": "".join(answer)}]

    def _pieces(self, messages: list[dict[str, str]]) -> Generator[Piece, None, None]:
        body = {
            "messages": messages,
            "stream_options": {"include_usage": True},
            **self.settings.fields(),
        }
        for event in self._api.stream("/v1/chat/completions", body):
            if usage := event.get("usage"):
                self.figures.tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                self.figures.finish = choice.get("finish_reason") or self.figures.finish
                for piece in _pieces_of(choice["delta"]):
                    self.figures.add_piece()
                    yield piece


def _pieces_of(delta: dict[str, Any]) -> Generator[Piece, None, None]:
    """Reasoning goes by either name, or by both at once."""
    if thought := delta.get("reasoning") or delta.get("reasoning_content"):
        yield Piece(thought, reasoning=True)
    if text := delta.get("content"):
        yield Piece(text)
