"""What clients send, to token ids. Long texts are encoded off the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from megainfer.errors import RequestError
from megainfer.tokenizer import Tokenizer
from server.protocol import ChatMessage, Prompts

INLINE_CHARACTERS = 2048  # encoding this many takes about as long as changing threads twice


class PromptEncoder:
    """Encodes prompts and chats; without a tokenizer only token ids are taken."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    async def completion(self, prompts: Prompts, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each prompt. Raises RequestError."""
        return [
            await self._encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]

    async def chat(
        self, messages: Sequence[ChatMessage], variables: dict[str, Any] | None
    ) -> list[int]:
        """Token ids of the chat, up to where the assistant speaks. Raises RequestError."""
        tokenizer = self._required("messages")
        plain = [message.for_template() for message in messages]

        def render_and_encode() -> list[int]:
            text = tokenizer.render_chat(plain, variables=variables)
            return tokenizer.encode(text, add_special_tokens=False)

        size = sum(len(message.content) for message in messages)
        return await _run(size, render_and_encode)

    async def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        tokenizer = self._required("prompt")
        return await _run(len(text), lambda: tokenizer.encode(text, add_special_tokens))

    def _required(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError(
                "this model's folder has no tokenizer, so only token ids are served; "
                "send a list of token ids as the prompt of /v1/completions",
                param,
            )
        return self._tokenizer


async def _run(size: int, work: Callable[[], list[int]]) -> list[int]:
    return work() if size <= INLINE_CHARACTERS else await asyncio.to_thread(work)
