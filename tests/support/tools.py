"""A model that speaks of tools: a chat template, and what its words are."""

from collections.abc import AsyncIterator

from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from tests.support.scripted_server import RunningServer, Script

TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} in <tool_call></tool_call>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "[{{ call.function.name }}({{ call.function.arguments.x }})]"
    "{% endfor %}\n{% endfor %}"
    "{% if reasoning_effort %}effort: {{ reasoning_effort }}\n{% endif %}"
    "assistant: {% if enable_thinking %}<think>{% endif %}"
)
CALL = '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>'


def saying(tokenizer: Tokenizer, text: str) -> Script:
    """A script: this text, token by token, and an end token."""

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        for token in tokenizer.encode(text):
            yield TokenEvent(submit.request_id, [token])
        yield TokenEvent(submit.request_id, [2], FinishReason.STOP)

    return script


def prompt_of(server: RunningServer, tokenizer: Tokenizer) -> str:
    """What the node has been asked to go on with."""
    return tokenizer.decode(server.node.expect(Submit).prompt, skip_special_tokens=False)
