"""A chat's text, by the template that a tokenizer chooses for it, in the test's own process."""

from collections.abc import Mapping, Sequence
from typing import Any

from megainfer.text.chat import Chat
from megainfer.text.tokenizer import Tokenizer


def rendered_by(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    name = tokenizer.template_name(Chat(messages, tools))
    return tokenizer.chat_templates[name].render(messages, tools, prompt, variables)
