"""tekken.json, read by Mistral's own library, which also puts chats into the model's form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError, RequestError
from megainfer.text.call_ids import nine_letters
from megainfer.text.chat import Chat, EncodedChat
from megainfer.text.json_file import read_json_object
from megainfer.text.tokenizers.backend import ByteVocabulary, library
from megainfer.text.tokenizers.byte_pairs import BytePairBackend

NAME = "tekken.json"
CLASS = "MistralCommonBackend"  # what transformers reads it with
MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")


class Tekken:
    """backend: see `TokenizerBackend`; special tokens that a text spells out are text. chats: see
    `ChatEncoder`."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError when the file isn't what it should be, or the library isn't there."""
        tokenizers = library("mistral_common.tokens.tokenizers.mistral", "mistral", str(path))
        try:
            tokenizer = tokenizers.MistralTokenizer.from_file(path)
            tekken = tokenizer.instruct_tokenizer.tokenizer
            vocabulary = _vocabulary(path, tekken)
        except Exception as error:  # another's code: assertions, key errors, ...
            raise ModelError(
                f"{path} isn't a tokenizer of Mistral's: {type(error).__name__}: {error}"
            ) from error

        def encode(text: str) -> list[int]:
            return list(tekken.encode(text, bos=False, eos=False))

        self.backend = BytePairBackend(vocabulary, encode, [tekken.bos_id])
        self.chats = TekkenChats(tokenizer, self.backend)
        self.named = {"tokenizer_class": CLASS, "bos_token": "<s>", "eos_token": "</s>"}


class TekkenChats:
    """Chats by the rules of the tokenizer's version, which the file says."""

    def __init__(self, tokenizer: Any, backend: BytePairBackend) -> None:
        self._tokenizer = tokenizer
        self._backend = backend
        self.marks = " ".join(backend.vocabulary().special)

    def encode(self, chat: Chat) -> EncodedChat:
        """Raises RequestError where the library refuses the chat."""
        if chat.variables:
            raise RequestError(
                f"this model has no chat template, so {', '.join(sorted(chat.variables))} would "
                "change nothing; leave it out",
                "chat_template_kwargs",
            )
        try:
            encoded = self._tokenizer.encode_chat_completion(_request(chat))
        except Exception as error:  # another's code, given what a user wrote
            message = f"mistral-common refused these messages: {error}"
            raise RequestError(message, "messages") from error
        ids = list(encoded.tokens)
        return EncodedChat(ids, self._backend.decode(ids, skip_special_tokens=False))


def _request(chat: Chat) -> Any:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    return ChatCompletionRequest.from_openai(
        messages=[_message(message) for message in chat.messages],
        tools=list(chat.tools) if chat.tools else None,
        continue_final_message=chat.continues_last,
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: message[name] for name in MESSAGE_FIELDS if message.get(name) is not None}
    if "tool_call_id" in fields:
        fields["tool_call_id"] = nine_letters(fields["tool_call_id"])
    if calls := fields.get("tool_calls"):
        fields["tool_calls"] = [
            {**call, "id": nine_letters(str(call.get("id", "")))} for call in calls
        ]
        fields["content"] = fields.get("content") or None
    return fields


def _vocabulary(path: Path, tekken: Any) -> ByteVocabulary:
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    first, raising = tekken.num_special_tokens, SpecialTokenPolicy.RAISE
    ids = {tekken.id_to_byte_piece(i, raising): i for i in range(first, tekken.n_words)}
    special = {tekken.id_to_piece(i): i for i in range(first)}
    return ByteVocabulary(ids, special, read_json_object(path)["config"]["pattern"])
