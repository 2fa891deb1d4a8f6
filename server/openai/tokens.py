"""/tokenize, /detokenize and /tokenizer_info."""

from typing import Annotated

import msgspec
from pydantic import Field
from starlette.responses import JSONResponse, Response

from megainfer.errors import RequestError
from megainfer.text.tokenizer import Tokenizer
from server.openai.generating import Generator
from server.openai.protocol import Body, ChatRequest, CompletionRequest
from server.openai.served_model import ServedModel
from server.openai.translation import chat_request
from server.openai.wishes.values import JsonObjects

MAX_DETOKENIZED = 2**20
TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # what reads any tokenizer.json


class TokenizeRequest(Body):
    """POST /tokenize: of a prompt, or of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: JsonObjects | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


class TokenizerApi:
    """The handlers, over the served model's tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer | None, model: ServedModel, generator: Generator
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._generator = generator

    async def tokenize(self, body: TokenizeRequest) -> Response:
        """The token ids of a prompt, or of what the chat template makes of a chat."""
        self._generator.served_name(body.model)
        ids = await self._ids(body)
        tokenizer = self._required()

        def answer() -> bytes:
            pieces = map(tokenizer.piece, ids) if body.return_token_strs else None
            fields = {
                "count": len(ids),
                "max_model_len": self._model.max_model_len,
                "tokens": ids,
                "token_strs": pieces and list(pieces),
            }
            return msgspec.json.encode(fields)

        content = await self._generator.long_work.run(len(ids), answer)
        return Response(content, media_type="application/json")

    async def detokenize(self, body: DetokenizeRequest) -> Response:
        """The text of token ids, special ones included."""
        self._generator.served_name(body.model)
        size = self._model.vocab_size
        if len(body.tokens) > MAX_DETOKENIZED:
            message = f"tokens holds {len(body.tokens)}; at most {MAX_DETOKENIZED} may be"
            raise RequestError(message, "tokens")
        if body.tokens and not (min(body.tokens) >= 0 and max(body.tokens) < size):
            wrong = next(token for token in body.tokens if not 0 <= token < size)
            raise RequestError(f"tokens: {wrong} isn't in the vocabulary", "tokens")
        tokenizer = self._required()
        text = await self._generator.long_work.run(
            len(body.tokens), lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
        )
        return JSONResponse({"prompt": text})

    async def tokenizer_info(self) -> Response:
        """What tokenizer_config.json says, with special tokens as texts, and the chat template."""
        tokenizer = self._required()
        defaults = {
            "tokenizer_class": TOKENIZER_CLASS,
            "model_max_length": self._model.max_model_len,
        }
        template = {"chat_template": tokenizer.chat_template or None}
        return JSONResponse({**defaults, **tokenizer.config, **template})

    async def _ids(self, body: TokenizeRequest) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("send either prompt or messages", "prompt")
        if body.messages is not None:
            special = {"add_special_tokens": body.add_special_tokens}
            chat: ChatRequest = chat_request({"messages": body.messages, **special}, body)
            return await self._generator.chat_tokens(chat)
        special_tokens = body.add_special_tokens is not False
        fields = {"prompt": body.prompt, "add_special_tokens": special_tokens}
        (prompt,) = await self._generator.encoder.completion(
            CompletionRequest.model_validate(fields)
        )
        return prompt.ids

    def _required(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError("this model's folder has no tokenizer", "prompt")
        return self._tokenizer
