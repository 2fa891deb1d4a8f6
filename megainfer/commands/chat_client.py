"""A conversation with an OpenAI-compatible server, answer by answer."""

import json
from collections.abc import Generator, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from megainfer.errors import MegaInferError

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # a long prompt may be read for minutes before its first token


class ChatClient:
    """One conversation; `history` holds its messages, the system message among them.

    options: further fields of each request, such as temperature. Raises MegaInferError when the
    server can't be reached or answers with an error.
    """

    def __init__(
        self, url: str, model: str | None = None, system: str | None = None, **options: Any
    ) -> None:
        address = url if "://" in url else f"http://{url}"
        self.url = address.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        try:
            # A proxy of the environment is for the world outside, not for this machine.
            outside = not is_loopback(self.url)
            self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=outside)
        except (httpx.InvalidURL, ValueError) as error:
            raise MegaInferError(f"--url {url!r} is no address of a server: {error}") from error
        self._system = [{"role": "system", "content": system}] if system else []
        self._options = {name: value for name, value in options.items() if value is not None}
        self.history: list[dict[str, str]] = list(self._system)
        self.model = model or self._first_model()

    def close(self) -> None:
        self._http.close()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.history = list(self._system)

    def ask(self, message: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Closing the iterator early hangs up, which stops the server.

        Question and answer, as far as it came, join the history; after an error neither does.
        """
        question = {"role": "user", "content": message}
        body = {"messages": [*self.history, question], "model": self.model, "stream": True}
        pieces: list[str] = []
        try:
            for piece in self._stream({**body, **self._options}):
                pieces.append(piece)
                yield piece
        except MegaInferError:
            pieces.clear()
            raise
        finally:
            if pieces:
                answer = {"role": "assistant", "content": "".join(pieces)}
                self.history += [question, answer]

    def _first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _raise_for_error(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise MegaInferError(f"{self.url} isn't an OpenAI-compatible server") from error

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    _raise_for_error(response)
                for line in response.iter_lines():
                    yield from _text_of(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> MegaInferError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return MegaInferError(
                f"no server answers at {self.url}; start one with `megainfer serve`, or say where "
                "it is with --url"
            )
        return MegaInferError(f"the connection to {self.url} broke: {error!r}")


def is_loopback(url: str) -> bool:
    """Whether this address is on the own machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text_of(line: str) -> Iterator[str]:
    """The text in one line of an event stream, if there is any."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise MegaInferError(str(event["error"]["message"]))
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            yield text


def _raise_for_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = response.text[:200]
    raise MegaInferError(f"the server answered {response.status_code}: {message}")
