"""Text to token ids and back, as the model's own files say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from megainfer.chat_template import ChatTemplate, read_chat_templates
from megainfer.errors import ModelError, RequestError
from megainfer.generation_config import read_json_object


class Tokenizer:
    """A model folder's tokenizer.json, with its special tokens and chat templates.

    Safe to use from several threads once it is loaded.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_templates: Mapping[str, ChatTemplate],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """config: what tokenizer_config.json says."""
        self.config = dict(config or {})
        self._backend = backend
        self._chat_templates = dict(chat_templates)
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat template.

        What is added around a text (a beginning token, say) is what tokenizer.json says, as in
        transformers 5: `add_bos_token` in tokenizer_config.json has no effect beside it.

        Raises ModelError when a file is missing or isn't what it should be.
        """
        config = read_json_object(folder / "tokenizer_config.json")
        special = _special_tokens(config)
        backend = _read_backend(folder / "tokenizer.json")
        _mark_special(backend, special)
        sources = read_chat_templates(folder, config)
        templates = {name: ChatTemplate(source, special) for name, source in sources.items()}
        return cls(backend, templates, {**config, **special})

    @property
    def vocab_size(self) -> int:
        """Number of token ids that stand for text; the model's vocabulary may be padded beyond."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def chat_template(self) -> str:
        """The source of the template that chats with tools use; empty where there is none."""
        template = self._chat_templates.get("tool_use") or self._chat_templates.get("default")
        return template.source if template else ""

    def token_id(self, text: str) -> int | None:
        """The id of the token that is exactly this text, if there is one."""
        return self._backend.token_to_id(text)

    def to_json(self) -> str:
        """The contents of a tokenizer.json, special tokens of the configuration included."""
        return self._backend.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens spelled out in it become themselves."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of these tokens; ids beyond the tokenizer's vocabulary have none."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    @property
    def is_byte_level(self) -> bool:
        """Whether the characters of a token stand for bytes, as in GPT-2's vocabulary."""
        return "ByteLevel" in repr(self._backend.decoder)

    def piece(self, token: int) -> str | None:
        """A token as the vocabulary spells it; None beyond the vocabulary."""
        return self._backend.id_to_token(token)

    def is_added(self, token: int) -> bool:
        """Whether it was added to the vocabulary, and is spelled as the text that it stands for."""
        return token in self._added_ids

    def is_silent(self, token: int, skip_special_tokens: bool) -> bool:
        """Whether this token never contributes to a text."""
        if token in self._special_ids:
            return skip_special_tokens
        return self._backend.id_to_token(token) is None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the model's chat template makes; encode it without special tokens.

        Raises RequestError when the model has no template, or the template refuses or fails.
        """
        template = self._chat_templates.get("tool_use") if tools else None
        template = template or self._chat_templates.get("default")
        if template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions, or put a "
                "chat_template.jinja into the model's folder",
                "messages",
            )
        return template.render(messages, tools, add_generation_prompt, variables)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None for a bare checkpoint, which is served by token ids."""
    return Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(f"{path} is missing; save the model's fast tokenizer there")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the only type that the library raises
        raise ModelError(f"{path} isn't a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens (bos_token, ...), which are written as strings or as objects."""
    named = {}
    for name, entry in config.items():
        text = entry.get("content") if isinstance(entry, dict) else entry
        if name.endswith("_token") and isinstance(text, str):
            named[name] = text
    return named


def _mark_special(backend: tokenizers.Tokenizer, special: Mapping[str, str]) -> None:
    """Treat named special tokens as such even where tokenizer.json doesn't say so."""
    known = [text for text in special.values() if backend.token_to_id(text) is not None]
    backend.add_special_tokens(list(dict.fromkeys(known)))
