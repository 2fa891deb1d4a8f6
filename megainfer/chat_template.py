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
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megainfer.errors import ModelError, RequestError

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """One template and the special tokens (name -> text, such as bos_token) that it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.source)

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
        names = {**self._special_tokens, **_checked(variables or {})}
        try:
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
    """A model's templates by name: chat_template.jinja first, else those of the configuration.

    Raises ModelError when the configuration's entry is neither a string nor a list of named ones.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    entry = tokenizer_config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        return {str(named["name"]): str(named["template"]) for named in entry}
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"chat_template in {folder / 'tokenizer_config.json'} must be a string or a list of "
            f'{{"name", "template"}} objects, but is {entry!r:.80}'
        ) from error


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
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(helpers)
    return environment


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
