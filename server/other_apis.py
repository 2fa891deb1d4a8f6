"""The addresses of APIs that are told in terms of a chat."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.anthropic.narrator import MessagesNarrator
from server.anthropic.protocol import CountRequest, MessagesRequest
from server.narration.narrator import narrate
from server.openai.generating import Generator
from server.responses.narrator import ResponsesNarrator
from server.responses.protocol import ResponsesRequest


class OtherApis:
    """The handlers."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def responses(self, body: ResponsesRequest, request: Request) -> Response:
        """OpenAI's newer API, without anything stored."""
        chat = body.chat()
        params = self._generator.sampling(chat)
        narrator = ResponsesNarrator(body, params, self._generator.served_name(body.model))
        generation = await self._generator.chat(chat)
        return await narrate(request, generation, narrator, bool(body.stream))

    async def messages(self, body: MessagesRequest, request: Request) -> Response:
        """Anthropic's API."""
        chat = body.chat()
        narrator = MessagesNarrator(self._generator.served_name(body.model))
        generation = await self._generator.chat(chat, shortened=True)
        return await narrate(request, generation, narrator, bool(body.stream))

    async def count_tokens(self, body: CountRequest) -> Response:
        """How many tokens a request of `messages` would begin with."""
        self._generator.served_name(body.model)
        ids = await self._generator.chat_tokens(body.chat())
        return JSONResponse({"input_tokens": len(ids)})
