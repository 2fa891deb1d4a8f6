"""A model's chat template: Jinja in a sandbox, with the names that Hugging Face gives templates.

The template comes with the model, so it is another's code: it runs in Jinja's immutable sandbox
and sees plain JSON values only.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from megainfer.errors import ConfigError, ModelError, RequestError
from megainfer.small_file import MEGABYTE, read_small_text
from megainfer.text.chat_forms import ChatForms, forms_of
from megainfer.text.json_file import read_json_object

JINJA = "*.jinja"
MAX_TEMPLATE_BYTES = 16 * MEGABYTE
RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """One template and the special tokens (name -> text, such as bos_token) that it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.source)

    @cached_property
    def forms(self) -> ChatForms:
        """In which it wants messages."""
        return forms_of(self.render)

    @cached_property
    def _loops_over_parts(self) -> bool:
        """Whether it takes a content to be a list of parts, as multimodal models' do, and doesn't
        ask whether it is a string."""
        tree = _environment().parse(self.source)
        asks = any(test.name == "string" for test in tree.find_all(nodes.Test))
        return not asks and any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The same as `render` of messages that are brought into the form which it wants."""
        return self.render(self.forms.fit(messages), tools, add_generation_prompt, variables)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. `variables` are further names for the template (enable_thinking).

        Raises RequestError when the template refuses the messages or fails.
        """
        names = {**self.special_tokens, **_checked(variables or {})}
        try:
            if self._loops_over_parts:
                messages = [_in_parts(message) for message in messages]
            return self._template.render(
                names, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            message = f"the model's chat template refused these messages: {error}"
            raise RequestError(message, "messages") from error
        except Exception as error:  # the template is a program: it can raise anything
            message = f"the model's chat template failed: {type(error).__name__}: {error}"
            raise RequestError(message, "messages") from error


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name: chat_template.jinja and those of additional_chat_templates; else
    tokenizer_config.json's; else those of chat_template.json, where processors have them.

    Raises ModelError when an entry is neither a string nor a list of named ones, or a file can't be
    read.
    """
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob(JINJA))}
    if (path := folder / "chat_template.jinja").is_file():
        files["default"] = path
    if files:
        return {name: _read_template(path) for name, path in files.items()}
    own = _named(tokenizer_config.get("chat_template"), folder / "tokenizer_config.json")
    legacy = folder / "chat_template.json"
    return own or _named(read_json_object(legacy).get("chat_template"), legacy)


def _read_template(path: Path) -> str:
    try:
        return read_small_text(path, MAX_TEMPLATE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template {path} can't be read: {error}") from error


def given_chat_template(given: str) -> str:
    """The source of a template that a user names by its file or gives as it is.

    Raises ConfigError for a file that can't be read, and for what is no Jinja.
    """
    source = given
    if not any(mark in given for mark in "{}\n"):
        try:
            source = read_small_text(Path(given).expanduser(), MAX_TEMPLATE_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--chat-template {given} can't be read: {error}") from error
    try:
        _environment().from_string(source)
    except TemplateError as error:
        raise ConfigError(f"--chat-template isn't a Jinja template: {error}") from error
    return source


def _named(entry: Any, path: Path) -> dict[str, str]:
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        return {str(named["name"]): str(named["template"]) for named in entry}
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"chat_template in {path} must be a string or a list of "
            f'{{"name", "template"}} objects, but is {entry!r:.80}'
        ) from error


def _is_content(expression: nodes.Node) -> bool:
    """`message.content`, `message['content']`, or either with filters."""
    match expression:
        case nodes.Filter(node=nodes.Node() as inner):
            return _is_content(inner)
        case nodes.Getattr(attr="content") | nodes.Getitem(arg=nodes.Const(value="content")):
            return True
    return False


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}] if content else []}


def _checked(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    if taken := RESERVED & variables.keys():
        raise RequestError(
            f"chat_template_kwargs must not set {', '.join(sorted(taken))}", "chat_template_kwargs"
        )
    return variables


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, LoopControls]
    )
    environment.filters["tojson"] = _tojson
    helpers: dict[str, Callable[..., Any]] = {
        "dict": _SafeDict(),
        "namespace": _SafeNamespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(helpers)
    return environment


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)  # what is set in it stays in it


class _SafeDict:
    """`dict(...)` and `dict.fromkeys`, without the type behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """A namespace that takes no name with which Python's internals begin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in (given := dict(*args, **kwargs)):
            _check_name(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore: {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter this doesn't escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def up_to_the_end_of(message: Mapping[str, Any], text: str) -> str:
    """A rendered chat, cut where its last message's content ends.

    Templates may strip what surrounds a content, so it is found without. Raises RequestError when
    the template changed more than that.
    """
    content = message["content"].strip()
    start = text.rfind(content)
    if not content or start < 0:
        raise RequestError(
            "the last message can't be continued: it is empty, or the chat template changes it",
            "continue_final_message",
        )
    end = start + len(content)
    spaces = message["content"][len(message["content"].rstrip()) :]
    return text[: end + len(spaces)] if text.startswith(spaces, end) else text[:end]
