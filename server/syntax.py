"""Which notations a model uses in its answers, for tool calls and for reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.syntax_options import AUTO, NONE, SyntaxOptions
from megainfer.tokenizer import Tokenizer
from server.parsing.notations import NOTATIONS, Notation
from server.parsing.reasoning import THINK

MARKS = {
    "<｜tool▁calls▁begin｜>": "deepseek_v3",
    "[TOOL_CALLS]": "mistral",
    "<tool_call>": "hermes",
    '{"name": function name, "parameters": ': "llama3_json",
    "[func_name1(": "pythonic",
}


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """calls: how tool calls are written, None where it isn't known. thinks: reasoning stands before
    the answer. always_thinks: even where neither prompt nor answer opens it. end_of_think: the
    token that ends it, where it is one."""

    calls: Notation | None = None
    thinks: bool = False
    always_thinks: bool = False
    end_of_think: int | None = None
    tokenizer: Tokenizer | None = None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        assert self.tokenizer is not None, "no text comes without a tokenizer"
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @classmethod
    def of(cls, options: SyntaxOptions, tokenizer: Tokenizer | None) -> "AnswerSyntax":
        """What the options say, or the chat template shows."""
        template = tokenizer.chat_template if tokenizer else ""
        calls, reasoning = options.tool_call_parser, options.reasoning_parser
        if calls == AUTO:
            calls = _format_in(template)
        if reasoning == AUTO:
            reasoning = "qwen3" if THINK in template else NONE
        if not options.auto_tool_choice:
            calls = NONE
        return cls(
            calls=NOTATIONS.get(calls),
            thinks=reasoning != NONE,
            always_thinks=reasoning == "deepseek_r1",
            end_of_think=tokenizer.token_id("</think>") if tokenizer else None,
            tokenizer=tokenizer,
        )


def _format_in(template: str) -> str:
    """By what a template writes. `<function=` is another notation inside of Hermes' tag: Qwen's if
    it has parameters in tags, else nobody's that is known. Llama's are known by its templates' own
    words to the model. DeepSeek's older template is told from the newer by its code fence."""
    name = next((name for mark, name in MARKS.items() if mark in template), NONE)
    if name == "hermes" and "<function=" in template:
        return "qwen3_coder" if "<parameter=" in template else NONE
    if name == "deepseek_v3" and "```json" not in template:
        return "deepseek_v31"
    return name
