"""Which notations a model uses in its answers, for tool calls and for reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.frontend.syntax_options import AUTO, NONE, SyntaxOptions
from megainfer.text.tokenizer import Tokenizer
from server.parsing import harmony
from server.parsing.notations import HARMONY, NOTATIONS, Notation
from server.parsing.reasoning import END_OF_THINK, MISTRAL_TAGS, THINK

MARKS = {
    harmony.CHANNEL_TAG: HARMONY,
    "<｜tool▁calls▁begin｜>": "deepseek_v3",
    "<｜DSML｜": "deepseek_v32",
    "<|tool_calls_section_begin|>": "kimi_k2",
    "<minimax:tool_call>": "minimax_m2",
    "[TOOL_CALLS]": "mistral",
    "<|tool_call|>": "granite",
    "<tool_calls>": "hunyuan_a13b",
    "<arg_key>": "glm45",
    "<tool_call>": "hermes",
    '{"name": function name, "parameters": ': "llama3_json",
    "[func_name1(": "pythonic",
}
CHANNELS = "openai_gptoss"
THINKS = {THINK: "qwen3", MISTRAL_TAGS[0]: "mistral"}


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """calls: how tool calls are written, None where it isn't known. thinks: reasoning stands before
    the answer. always_thinks: even where neither prompt nor answer opens it. channels: it comes, as
    the answer does, in messages of gpt-oss's kind. think_tags: around it elsewhere. end_of_think:
    what ends it; end_token: as a token, where it is one. silent_thinks, silent_calls: tags are
    special tokens, which must be spelled out to be seen."""

    calls: Notation | None = None
    thinks: bool = False
    always_thinks: bool = False
    channels: bool = False
    think_tags: tuple[str, str] = (THINK, END_OF_THINK)
    end_of_think: str = END_OF_THINK
    end_token: int | None = None
    silent_thinks: bool = False
    silent_calls: bool = False
    tokenizer: Tokenizer | None = None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        assert self.tokenizer is not None, "no text comes without a tokenizer"
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @classmethod
    def of(cls, options: SyntaxOptions, tokenizer: Tokenizer | None) -> "AnswerSyntax":
        """What the options say, or the chat template shows."""
        template = tokenizer.chat_marks if tokenizer else ""
        calls, reasoning = options.tool_call_parser, options.reasoning_parser
        if calls == AUTO:
            calls = _format_in(template)
        seen = calls == HARMONY or harmony.CHANNEL_TAG in template
        channels = reasoning == CHANNELS or (reasoning == AUTO and seen)
        if reasoning == AUTO:
            reasoning = next((name for tag, name in THINKS.items() if tag in template), NONE)
        if not options.auto_tool_choice:
            calls = NONE
        tags = MISTRAL_TAGS if reasoning == "mistral" else (THINK, END_OF_THINK)
        end = harmony.END if channels else tags[1]
        thinks = reasoning != NONE and not channels
        notation = NOTATIONS.get(calls)
        return cls(
            calls=notation,
            thinks=thinks,
            always_thinks=reasoning == "deepseek_r1",
            think_tags=tags,
            channels=channels,
            end_of_think=end,
            end_token=tokenizer.token_id(end) if tokenizer else None,
            silent_thinks=thinks and _is_special(tokenizer, end),
            silent_calls=notation is not None
            and (notation.special or _is_special(tokenizer, notation.opening)),
            tokenizer=tokenizer,
        )


def _is_special(tokenizer: Tokenizer | None, text: str) -> bool:
    token = tokenizer.token_id(text) if tokenizer else None
    return tokenizer is not None and token is not None and tokenizer.is_silent(token, True)


def _format_in(template: str) -> str:
    """By what a template writes. `<function=` is another notation inside of Hermes' tag: Qwen's if
    it has parameters in tags, else nobody's that is known. Llama's are known by its templates' own
    words to the model. DeepSeek's older template is told from the newer by its code fence,
    Mistral's newer from the older by its tag before arguments."""
    name = next((name for mark, name in MARKS.items() if mark in template), NONE)
    if name == "hermes" and "<function=" in template:
        return "qwen3_coder" if "<parameter=" in template else NONE
    if name == "mistral" and "[ARGS]" in template:
        return "mistral_v11"
    if name == "deepseek_v3" and "```json" not in template:
        return "deepseek_v31"
    return name
