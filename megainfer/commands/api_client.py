"""An OpenAI-compatible server as the commands in a terminal need it."""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from megainfer.commands.bearer import bearer
from megainfer.errors import MegaInferError

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # a long prompt may be read for minutes before its first token


class ApiClient:
    """Connections to the server at `url`, and which of its models is meant (None: the first).

    Raises MegaInferError when the server can't be reached or answers with an error.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        address = url if "://" in url else f"http://{url}"
        self.url = address.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        headers = bearer("--api-key", api_key)
        try:
            # A proxy of the environment is for the world outside, not for this machine.
            outside = not is_loopback(self.url)
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=outside
            )
            check_host(self._http.base_url)
        except (httpx.InvalidURL, ValueError) as error:
            raise MegaInferError(f"--url {url!r} is no address of a server: {error}") from error
        self.model = model or self._first_model()

    def close(self) -> None:
        self._http.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer. Closing the iterator hangs up."""
        try:
            request = {"model": self.model, "stream": True, **body}
            with self._http.stream("POST", path, json=request) as response:
                if response.is_error:
                    response.read()
                    _raise_for_error(response)
                for line in response.iter_lines():
                    yield from _event(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

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

    def _unreachable(self, error: httpx.HTTPError) -> MegaInferError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return MegaInferError(
                f"no server answers at {self.url}; start one with `megainfer serve`, or say where "
                "it is with --url"
            )
        return MegaInferError(f"the connection to {self.url} broke: {error!r}")


def check_host(url: httpx.URL) -> None:
    """Raises ValueError for a name that the resolver would raise for, with a traceback: one with an
    empty part, or a part of more than 63 characters."""
    url.raw_host.decode("ascii").encode("idna")


def is_loopback(url: str) -> bool:
    """Whether this address is on the own machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _event(line: str) -> Iterator[dict[str, Any]]:
    """The event in one line of a stream, if there is any."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise MegaInferError(str(event["error"]["message"]))
    yield event


def _raise_for_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = response.text[:200]
    raise MegaInferError(f"the server answered {response.status_code}: {message}")
