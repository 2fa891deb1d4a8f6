"""The addresses of APIs that are told in terms of a chat."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import JSONResponse, Response

from megainfer.errors import MegaInferError
from server.anthropic.narrator import MessagesNarrator, error_of
from server.anthropic.protocol import CountRequest, MessagesRequest
from server.errors import ApiError, report_of
from server.generating import Generator
from server.narration import narrate
from server.responses.narrator import ResponsesNarrator
from server.responses.protocol import ResponsesRequest


class OtherApis:
    """The handlers."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def responses(self, body: ResponsesRequest, request: Request) -> Response:
        """OpenAI's newer API, without anything stored."""
        chat = body.chat()
        narrator = ResponsesNarrator(body, self._generator.served_name(body.model))
        generation = await self._generator.chat(chat)
        return await narrate(request, generation, narrator, bool(body.stream))

    async def messages(self, body: MessagesRequest, request: Request) -> Response:
        """Anthropic's API."""

        async def answer() -> Response:
            chat = body.chat()
            narrator = MessagesNarrator(self._generator.served_name(body.model))
            generation = await self._generator.chat(chat)
            return await narrate(request, generation, narrator, bool(body.stream))

        return await _in_their_shape(answer)

    async def count_tokens(self, body: CountRequest) -> Response:
        """How many tokens a request of `messages` would begin with."""

        async def answer() -> Response:
            self._generator.served_name(body.model)
            ids = await self._generator.chat_tokens(body.chat())
            return JSONResponse({"input_tokens": len(ids)})

        return await _in_their_shape(answer)


async def _in_their_shape(answer: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await answer()
    except (MegaInferError, ApiError) as error:
        report = report_of(error)
        body = {"type": "error", "error": error_of(report)}
        headers = {"Retry-After": "1"} if report.status == 503 else None
        return JSONResponse(body, report.status, headers)
