"""What clients send, to token ids. Long texts are encoded off the event loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megainfer.errors import RequestError
from megainfer.frontend.request_limits import ContextTooLong
from megainfer.sharing.budgets import CHARACTERS_A_TOKEN
from megainfer.text.chat import Chat
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.tokenizer import Tokenizer
from server.http.client import current_client
from server.http.connection import while_client_stays
from server.http.long_work import UNKNOWN_SIZE, LongWork
from server.openai.protocol import ChatRequest, CompletionRequest
from server.openai.wishes.thinking import EFFORT
from server.parsing.reasoning import ends_in_thinking
from server.parsing.wrapped import PAIRS

MARGIN = 256
"""Characters more than are needed where a text is cut: its first tokens may be others then."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """echo: its text, for a request that wants it before the answer; else empty. thinking: it
    leaves the model inside its reasoning. answer_tags: of `AnswerTags`, which nobody asked for."""

    ids: list[int]
    echo: str = ""
    thinking: bool = False
    answer_tags: tuple[str, ...] = ()


class PromptEncoder:
    """Encodes prompts and chats; without a tokenizer only token ids are taken.

    max_model_len: how much of a prompt is kept at most where the client asks for truncation.
    max_characters: of a text that is encoded. renderer: of chats; needed where the tokenizer has
    templates.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        max_model_len: int,
        long_work: LongWork,
        max_characters: int,
        renderer: TemplateRenderer | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._long_work = long_work
        self._max_characters = max_characters
        self._renderer = renderer

    async def completion(self, body: CompletionRequest) -> list[Prompt]:
        """Each of the prompts. Raises RequestError."""
        kept = body.kept_tokens(self._max_model_len)
        size = sum(len(p) for p in body.prompt if isinstance(p, str) or body.is_echoed)
        return await self._long_work.run(
            size, lambda: [self._prompt(prompt, body, kept) for prompt in body.prompt]
        )

    async def chat(self, body: ChatRequest, tools: Sequence[dict[str, Any]]) -> Prompt:
        """The chat, up to where the assistant speaks. Raises RequestError, Overloaded."""
        tokenizer = self._required("messages")
        _check_effort(body, tokenizer)
        kept = body.kept_tokens(self._max_model_len)
        messages = [message.for_template() for message in body.messages]
        chat = Chat(
            messages,
            tools or None,
            body.template_variables(),
            opens_an_answer=body.opens_an_answer(),
            continues_last=body.continues,
            add_special_tokens=bool(body.add_special_tokens),
        )
        self._check_size(sum(len(str(message["content"])) for message in messages))
        assert self._renderer is not None, "chats need a renderer"
        text = await while_client_stays(self._renderer.render(chat, current_client.get()))
        size = UNKNOWN_SIZE if text is None else len(text)
        check = self._check_length if kept is None else self._check_rendered
        encoded = await self._long_work.run(size, lambda: tokenizer.encode_chat(chat, text, check))
        said = [str(message["content"]) for message in messages]
        tags = tuple(tag for tag in PAIRS if not any(tag in words for words in said))
        thinking = ends_in_thinking(encoded.text)
        return Prompt(_last(encoded.ids, kept), thinking=thinking, answer_tags=tags)

    def _prompt(self, given: str | list[int], body: CompletionRequest, kept: int | None) -> Prompt:
        special = body.add_special_tokens is not False
        ids, whole = self._ids(given, special, kept)
        last = _last(ids, kept)
        if not body.is_echoed:
            return Prompt(last)
        if isinstance(given, str) and whole and len(last) == len(ids):
            return Prompt(last, given)
        return Prompt(last, self._text(last, body.skip_special_tokens is not False))

    def _ids(
        self, given: str | list[int], add_special_tokens: bool, kept: int | None
    ) -> tuple[list[int], bool]:
        """And whether they are of all that was given, or at least `kept` of its end."""
        if not isinstance(given, str):
            return given, True
        if kept is None:
            self._check_length(given)
            return self._encode(given, add_special_tokens), True
        end = CHARACTERS_A_TOKEN * kept + MARGIN
        while True:
            end = min(end, self._max_characters)
            ids = self._encode(given[-end:], add_special_tokens)
            whole = len(given) <= end
            if whole or len(ids) > kept or end == self._max_characters:
                return ids, whole
            end *= 2

    def _check_rendered(self, text: str) -> None:
        self._check_size(len(text) // 2)  # what a template adds to a chat may be as long as that

    def _check_size(self, characters: int) -> None:
        if characters > self._max_characters:
            raise ContextTooLong(
                f"This model's maximum context length is {self._max_model_len} tokens. However, "
                f"your prompt has {characters} characters, and texts of at most "
                f"{self._max_characters} are encoded. Please reduce the length of the prompt.",
                "prompt",
            )

    def _check_length(self, text: str) -> None:
        """Raises ContextTooLong where that is certain: to encode megabytes takes seconds."""
        self._check_size(len(text))
        if len(text) <= self._max_model_len:  # which saves looking through the vocabulary
            return
        if (longest := self._required("prompt").longest) is None:
            return
        least = -(-len(text) // longest)
        if least > self._max_model_len:
            raise ContextTooLong(
                f"This model's maximum context length is {self._max_model_len} tokens. However, "
                f"your prompt has {len(text)} characters, which are at least {least} tokens, since "
                f"none stands for more than {longest} characters. Please reduce the length of the "
                "prompt.",
                "prompt",
            )

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        if self._tokenizer is None:
            return ""
        # Ids that no vocabulary has are refused later; here they only must do no harm.
        known = [token for token in ids if 0 <= token < self._tokenizer.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._required("prompt").encode(text, add_special_tokens)

    def _required(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError(
                "this model's folder has no tokenizer, so only token ids are served; "
                "send a list of token ids as the prompt of /v1/completions",
                param,
            )
        return self._tokenizer


def _check_effort(body: ChatRequest, tokenizer: Tokenizer) -> None:
    if body.effort is not None and EFFORT not in tokenizer.chat_template:
        raise RequestError(f"this model's chat template has no {EFFORT}; leave it out", EFFORT)


def _last(ids: list[int], kept: int | None) -> list[int]:
    return ids if kept is None else ids[-kept:]
