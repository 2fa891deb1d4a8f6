"""Text to token ids and back, as the model's own files say."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError, ModelError, RequestError
from megainfer.text.chat import Chat, ChatEncoder, EncodedChat
from megainfer.text.chat_template import (
    ChatTemplate,
    given_chat_template,
    read_chat_templates,
    up_to_the_end_of,
)
from megainfer.text.json_file import read_json_object
from megainfer.text.tokenizers import tekken, tiktoken_model
from megainfer.text.tokenizers.backend import ByteVocabulary, TokenizerBackend
from megainfer.text.tokenizers.declared import ADDED, DeclaredTokens, declared_tokens
from megainfer.text.tokenizers.fast import FastBackend

FAST = "tokenizer.json"
MAKE_ONE = (
    "make a tokenizer.json of it once, where transformers and sentencepiece are installed: "
    'python -c "from transformers import AutoTokenizer as T; '
    "T.from_pretrained('{0}').save_pretrained('{0}')\""
)
UNREADABLE = ("tokenizer.model", "tokenizer.model.*", "*.tiktoken", "vocab.json")
"""What other tokenizers come as."""


class Tokenizer:
    """A model folder's tokenizer, with its special tokens and chat templates.

    Safe to use from several threads once it is loaded.
    """

    def __init__(
        self,
        backend: TokenizerBackend,
        chat_templates: Mapping[str, ChatTemplate],
        config: Mapping[str, Any] | None = None,
        chats: ChatEncoder | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """config: what tokenizer_config.json says. chats: instead of templates. special_tokens: by
        the names that templates write."""
        self._special_tokens = dict(special_tokens or {})
        self.config = dict(config or {})
        self._backend = backend
        self.chat_templates = dict(chat_templates)
        self._chats = chats

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json (else tekken.json or tiktoken.model), tokenizer_config.json, what
        that may leave to special_tokens_map.json and added_tokens.json, and the chat templates.

        Raises ModelError when a file is missing or isn't what it should be, or a library for it is.
        """
        config = read_json_object(folder / "tokenizer_config.json")
        declared = declared_tokens(
            config,
            read_json_object(folder / "special_tokens_map.json"),
            read_json_object(folder / ADDED),
        )
        special = declared.texts
        if not (folder / FAST).is_file() and (folder / tekken.NAME).is_file():
            own = tekken.Tekken(folder / tekken.NAME)
            return cls(own.backend, {}, {**config, **own.named}, own.chats)
        backend = _read_backend(folder, config, declared)
        sources = read_chat_templates(folder, config)
        templates = {name: ChatTemplate(source, special) for name, source in sources.items()}
        return cls(backend, templates, {**config, **special}, special_tokens=special)

    def with_chat_template(self, source: str) -> "Tokenizer":
        """The same with this template for all chats. Raises ConfigError where a library of the
        model's own makes prompts of chats."""
        if self._chats is not None:
            raise ConfigError("--chat-template: this model's chats are made by mistral-common")
        special = self._special_tokens
        templates = {"default": ChatTemplate(source, special)}
        return Tokenizer(self._backend, templates, self.config, special_tokens=special)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that stand for text; the model's vocabulary may be padded beyond."""
        return self._backend.vocab_size

    @property
    def longest(self) -> int | None:
        """Characters that one token stands for at most; None where that isn't certain."""
        return self._backend.longest

    @property
    def chat_template(self) -> str:
        """The source of the template that chats with tools use; empty where there is none."""
        template = self.chat_templates.get("tool_use") or self.chat_templates.get("default")
        return template.source if template else ""

    @property
    def chat_marks(self) -> str:
        """Where it can be seen how the model writes calls and reasoning."""
        return self._chats.marks if self._chats else self.chat_template

    def token_id(self, text: str) -> int | None:
        """The id of the token that is exactly this text, if there is one."""
        return self._backend.token_id(text)

    def vocabulary(self) -> str | ByteVocabulary:
        """For compiling grammars: the contents of a tokenizer.json, special tokens of the
        configuration included, or the tokens' bytes."""
        return self._backend.vocabulary()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens spelled out in it become themselves, but for
        Mistral's."""
        return self._backend.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of these tokens; ids beyond the tokenizer's vocabulary have none."""
        return self._backend.decode(ids, skip_special_tokens)

    def piece(self, token: int) -> str | None:
        """A token as the vocabulary spells it; None beyond the vocabulary."""
        return self._backend.piece(token)

    def bytes_of(self, token: int) -> bytes:
        """What it contributes to a text's UTF-8; special tokens are spelled out."""
        return self._backend.bytes_of(token)

    def is_silent(self, token: int, skip_special_tokens: bool) -> bool:
        """Whether this token never contributes to a text."""
        if self._backend.is_special(token):
            return skip_special_tokens
        return self._backend.piece(token) is None

    @property
    def has_templates(self) -> bool:
        """Whether its chats are rendered by templates, rather than by a library of their own."""
        return self._chats is None

    def encode_chat(
        self,
        chat: Chat,
        text: str | None = None,
        check: Callable[[str], object] = lambda text: None,
    ) -> EncodedChat:
        """The prompt of a chat. text: what the template made of it (`TemplateRenderer.render`);
        None where a library of the model's own encodes chats. check: is given the text, and may
        raise, before that is encoded.

        Raises RequestError.
        """
        if self._chats is not None:
            return self._chats.encode(chat)
        assert text is not None, "a chat that nobody rendered"
        if chat.continues_last:
            text = up_to_the_end_of(chat.messages[-1], text)
        check(text)
        return EncodedChat(self.encode(text, chat.add_special_tokens), text)

    def template_name(self, chat: Chat) -> str:
        """Which of the templates is this chat's. Raises RequestError where there is none."""
        for name in ("tool_use", "default") if chat.tools else ("default",):
            if name in self.chat_templates:
                return name
        raise RequestError(
            "this model has no chat template; use /v1/completions, or put a "
            "chat_template.jinja into the model's folder",
            "messages",
        )


def load_tokenizer(folder: Path, chat_template: str | None = None) -> Tokenizer | None:
    """The folder's tokenizer, or None for a bare checkpoint, which is served by token ids.

    chat_template: a file, or Jinja itself, in place of the model's own.

    Raises ModelError as `Tokenizer.load`, and for tokenizers that can't be read; ConfigError for
    the template.
    """
    tokenizer = _load_tokenizer(folder)
    if chat_template is None:
        return tokenizer
    if tokenizer is None:
        raise ConfigError(f"--chat-template is of no use: {folder} holds no tokenizer")
    return tokenizer.with_chat_template(given_chat_template(chat_template))


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    if any((folder / name).is_file() for name in (FAST, tekken.NAME, tiktoken_model.NAME)):
        return Tokenizer.load(folder)
    for pattern in UNREADABLE:
        if found := next(folder.glob(pattern), None):
            raise ModelError(
                f"{found} is no kind of tokenizer that is read here; {MAKE_ONE.format(folder)}"
            )
    return None


def _read_backend(
    folder: Path, config: Mapping[str, Any], declared: DeclaredTokens
) -> TokenizerBackend:
    if not (folder / FAST).is_file() and (folder / tiktoken_model.NAME).is_file():
        model = read_json_object(folder / "config.json")
        size = (model.get("text_config") or model).get("vocab_size", 0)
        return tiktoken_model.load_tiktoken(folder / tiktoken_model.NAME, config, size)
    return FastBackend.load(folder / FAST, declared, config)
