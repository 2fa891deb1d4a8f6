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
from megainfer.token_text import TokenTexts
from megainfer.tokenizer import Tokenizer
from server.answer import Answer, respond, respond_streaming
from server.answer_options import AnswerOptions
from server.body import JsonRoute
from server.errors import ApiError, ErrorReport
from server.not_offered import CHAT, COMPLETION, refuse_not_offered
from server.prompts import Prompt, PromptEncoder
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
        self._texts = TokenTexts(tokenizer)
        self._encoder = PromptEncoder(tokenizer, model.max_model_len)
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
        self._served_name(body.model)
        refuse_not_offered(body.model_extra or {}, COMPLETION)
        options = body.answer_options()
        params = body.sampling(self._model.defaults, body.limit)
        prompts = await self._encoder.completion(body)
        limited = [(prompt, self._with_default_limit(params, prompt.ids)) for prompt in prompts]
        return await self._answer(request, body, CompletionShape(), options, limited)

    async def chat_completions(self, body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a chat."""
        self._served_name(body.model)
        refuse_not_offered(body.model_extra or {}, CHAT)
        for position, message in enumerate(body.messages):
            _refuse_tool_calls(message.model_extra or {}, position)
        options = body.answer_options()
        params = body.sampling(self._model.defaults, body.limit)
        prompt = await self._encoder.chat(body)
        return await self._answer(request, body, ChatShape(), options, [(prompt, params)])

    async def _answer(
        self,
        request: Request,
        body: SamplingFields,
        shape: Shape,
        options: AnswerOptions,
        prompts: list[tuple[Prompt, SamplingParams]],
    ) -> Response:
        request_id = f"{shape.prefix}-{uuid.uuid4().hex}"
        sequences = [
            sequence
            for position, (prompt, params) in enumerate(prompts)
            for sequence in unfold(
                SequenceRequest(
                    f"{request_id}-{position}",
                    prompt.ids,
                    params,
                    self._model.defaults.eos_token_ids,
                    priority=body.priority or 0,
                )
            )
        ]
        head = {"id": request_id, "model": self._served_name(body.model)}
        given = [prompt for prompt, _ in prompts]
        answer = Answer(shape, head, given, sequences, options, self._texts)
        deltas = TextStream.open(self._engine, self._tokenizer, sequences, shape.continues_prompt)
        if body.stream:
            return await respond_streaming(request, deltas, answer, options.usage)
        return await respond(request, deltas, answer)

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
