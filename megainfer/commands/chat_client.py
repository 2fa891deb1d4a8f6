"""A conversation with an OpenAI-compatible server, answer by answer."""

from collections.abc import Generator
from typing import Any

from megainfer.commands.api_client import ApiClient
from megainfer.errors import MegaInferError


class ChatClient:
    """One conversation; `history` holds its messages, the system message among them.

    options: further fields of each request, such as temperature; those that are None aren't sent.
    Raises MegaInferError when the server can't be reached or answers with an error.
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
        self._system = [{"role": "system", "content": system}] if system else []
        self._options = {name: value for name, value in options.items() if value is not None}
        self.history: list[dict[str, str]] = list(self._system)

    def close(self) -> None:
        self._api.close()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.history = list(self._system)

    def ask(self, message: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Closing the iterator early hangs up, which stops the server.

        Question and answer, as far as it came, join the history; after an error neither does.
        """
        question = {"role": "user", "content": message}
        body = {"messages": [*self.history, question], **self._options}
        pieces: list[str] = []
        try:
            for event in self._api.stream("/v1/chat/completions", body):
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        pieces.append(piece)
                        yield piece
        except MegaInferError:
            pieces.clear()
            raise
        finally:
            if pieces:
                answer = {"role": "assistant", "content": "".join(pieces)}
                self.history += [question, answer]
