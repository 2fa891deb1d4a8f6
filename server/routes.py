"""The addresses of the API."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from megainfer.engine_client import EngineClient, SequenceRequest
from megainfer.errors import RequestError
from megainfer.sampling import SamplingParams
from megainfer.text_stream import TextStream, unfold
from megainfer.tokenizer import Tokenizer
from server.answer import Answer, respond, respond_streaming
from server.body import JsonRoute
from server.errors import ApiError, ErrorReport
from server.not_offered import CHAT, COMPLETION, refuse_not_offered
from server.prompts import PromptEncoder
from server.protocol import ChatRequest, CompletionRequest, SamplingFields
from server.served_model import ServedModel
from server.shapes import ChatShape, CompletionShape, Shape

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, where /v1/completions leaves max_tokens out


class Api:
    """The handlers, over one engine and one model."""

    def __init__(
        self, engine: EngineClient, tokenizer: Tokenizer | None, model: ServedModel
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer)
        self._model = model

    async def models(self) -> Response:
        """The names under which the model is served."""
        cards = [self._model.card(name) for name in self._model.names]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, model_id: str) -> Response:
        """One of them."""
        return JSONResponse(self._model.card(self._served_name(model_id)))

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        model = self._check(body)
        refuse_not_offered(body.model_extra or {}, COMPLETION)
        params = body.sampling(self._model.defaults, body.max_tokens)
        prompts = await self._encoder.completion(body.prompt, body.add_special_tokens)
        limited = [(ids, self._with_default_limit(params, ids)) for ids in prompts]
        return await self._answer(request, body, CompletionShape(), model, limited)

    async def chat_completions(self, body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a chat."""
        model = self._check(body)
        refuse_not_offered(body.model_extra or {}, CHAT)
        for position, message in enumerate(body.messages):
            _refuse_tool_calls(message.model_extra or {}, position)
        limit = body.max_completion_tokens
        max_tokens = body.max_tokens if limit is None else limit
        params = body.sampling(self._model.defaults, max_tokens)
        prompt = await self._encoder.chat(body.messages, body.chat_template_kwargs)
        return await self._answer(request, body, ChatShape(), model, [(prompt, params)])

    async def _answer(
        self,
        request: Request,
        body: SamplingFields,
        shape: Shape,
        model: str,
        prompts: list[tuple[list[int], SamplingParams]],
    ) -> Response:
        request_id = f"{shape.prefix}-{uuid.uuid4().hex}"
        sequences = [
            sequence
            for position, (ids, params) in enumerate(prompts)
            for sequence in unfold(self._sequence(f"{request_id}-{position}", ids, params))
        ]
        answer = Answer(shape, request_id, model, sequences, n=prompts[0][1].n)
        deltas = TextStream.open(self._engine, self._tokenizer, sequences)
        if body.stream:
            return await respond_streaming(request, deltas, answer, body.include_usage)
        return await respond(request, deltas, answer)

    def _sequence(self, request_id: str, ids: list[int], params: SamplingParams) -> SequenceRequest:
        return SequenceRequest(request_id, ids, params, self._model.defaults.eos_token_ids)

    def _check(self, body: SamplingFields) -> str:
        """What every request must fulfil; the name to answer under."""
        if body.stream_options is not None and not body.stream:
            raise RequestError(
                "stream_options may only be given with stream: true", "stream_options"
            )
        return self._served_name(body.model)

    def _served_name(self, name: str | None) -> str:
        if name is None:
            return self._model.names[0]
        if name not in self._model.names:
            served = ", ".join(self._model.names)
            message = f"the model {name!r:.200} isn't served here; served: {served}"
            raise ApiError(ErrorReport(404, message, param="model", code="model_not_found"))
        return name

    def _with_default_limit(self, params: SamplingParams, ids: list[int]) -> SamplingParams:
        if params.max_tokens is not None:
            return params
        room = max(self._model.max_model_len - len(ids), 1)
        return replace(params, max_tokens=min(room, DEFAULT_COMPLETION_TOKENS))


def build_router(api: Api) -> APIRouter:
    """Every address, bound to its handler."""
    router = APIRouter(route_class=JsonRoute, default_response_class=JSONResponse)
    addresses: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{model_id:path}", api.model),
        ("POST", "/v1/completions", api.completions),
        ("POST", "/v1/chat/completions", api.chat_completions),
    ]
    for method, path, handler in addresses:
        router.add_api_route(path, handler, methods=[method], response_model=None)
    return router


def _refuse_tool_calls(fields: dict[str, object], position: int) -> None:
    if fields.get("tool_calls"):
        where = f"messages[{position}].tool_calls"
        raise RequestError(f"{where}: tool calls aren't offered by this server", where)
