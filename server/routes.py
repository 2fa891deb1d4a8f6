"""The addresses of the API."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server.http.json_route import JsonRoute
from server.openai.answer import respond, respond_streaming
from server.openai.generating import Generation, Generator
from server.openai.protocol import ChatRequest, CompletionRequest, SamplingFields
from server.openai.served_model import ServedModel
from server.openai.tokens import TokenizerApi
from server.other_apis import OtherApis


class Api:
    """The handlers, over one engine and one model."""

    def __init__(self, model: ServedModel, generator: Generator) -> None:
        self._model = model
        self._generator = generator

    async def models(self) -> Response:
        """The names under which the model is served."""
        cards = [self._model.card(name) for name in self._model.names]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, model_id: str) -> Response:
        """One of them."""
        return JSONResponse(self._model.card(self._generator.served_name(model_id)))

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        return await _answer(request, body, await self._generator.completion(body))

    async def chat_completions(self, body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a chat."""
        return await _answer(request, body, await self._generator.chat(body))


async def _answer(request: Request, body: SamplingFields, generation: Generation) -> Response:
    deltas, answer = generation.deltas, generation.answer
    if body.stream:
        return await respond_streaming(request, deltas, answer, generation.options.usage)
    return await respond(request, deltas, answer)


def add_routes(
    router: APIRouter, api: Api, others: OtherApis, tokens: TokenizerApi, shows_tokenizer: bool
) -> None:
    """Every address, bound to its handler. router: the application's own; one that it includes is
    looked through once to see whether it has an address, and again for which."""
    addresses: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
        ("POST", "/v1/chat/completions", api.chat_completions),
        ("POST", "/v1/completions", api.completions),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{model_id:path}", api.model),
        ("POST", "/v1/responses", others.responses),
        ("POST", "/v1/messages", others.messages),
        ("POST", "/v1/messages/count_tokens", others.count_tokens),
        ("POST", "/tokenize", tokens.tokenize),
        ("POST", "/detokenize", tokens.detokenize),
    ]
    if shows_tokenizer:
        addresses.append(("GET", "/tokenizer_info", tokens.tokenizer_info))
    for method, path, handler in addresses:
        router.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=None,
            response_class=JSONResponse,
            route_class_override=JsonRoute,
        )
