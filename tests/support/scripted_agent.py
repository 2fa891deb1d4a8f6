"""A model that works with tools, turn by turn, and what it sees of a conversation again."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer

BLOCK = 16
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system is first') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ '<think>\n' + (m.reasoning_content or '') + '</think>' }}"
    "{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' }}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{{ '</tool_call>' }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""It wants one system message, at the beginning, and arguments as objects."""
RESULT = "<|im_start|>tool\n"


class ScriptedAgent:
    """Calls a tool in each turn until `turns` results are there, then says that it is done.

    call: the name and arguments of a turn's call, of what the prompt holds. cached: of each turn
    but the first, how many of the tokens that the model had seen or said by then were there again,
    and how many they were. is_turn: whether a prompt is one; clients ask for titles, too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        turns: int,
        call: Callable[[int, str], tuple[str, Any]],
        is_turn: Callable[[str], bool] = lambda prompt: True,
    ) -> None:
        self.cached: list[tuple[int, int]] = []
        self.prompts: list[str] = []
        self._tokenizer, self._turns, self._call = tokenizer, turns, call
        self._is_turn = is_turn
        self._seen: list[int] = []

    async def script(self, submit: Submit) -> AsyncIterator[TokenEvent]:
        """See `Script`."""
        prompt = self._tokenizer.decode(submit.prompt, skip_special_tokens=False)
        turn = self._is_turn(prompt)
        cached = self._note(submit, prompt) if turn else 0
        text = self._answer(prompt) if turn else "Something.</think>A title"
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if turn:
            self._seen = [*submit.prompt, *ids]
        for position, token in enumerate(ids):
            yield TokenEvent(submit.request_id, [token], None, 0 if position else cached)
        yield TokenEvent(submit.request_id, [2], FinishReason.STOP)

    def _note(self, submit: Submit, prompt: str) -> int:
        pairs = zip(self._seen, submit.prompt, strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(self._seen))
        if self.prompts:
            self.cached.append((same, len(self._seen)))
        self.prompts.append(prompt)
        return same // BLOCK * BLOCK

    def _answer(self, prompt: str) -> str:
        turn = prompt.count(RESULT)
        if turn >= self._turns:
            return "That was it.</think>All done."
        name, arguments = self._call(turn, prompt)
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        return f"I need step {turn}.</think>Step {turn}.<tool_call>{call}</tool_call>"
