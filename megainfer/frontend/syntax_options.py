"""What a user may say of the notations in a model's answers."""

from dataclasses import dataclass

from megainfer.errors import ConfigError

AUTO, NONE = "auto", "none"
CALLS = (
    *("hermes", "deepseek_v3", "deepseek_v31", "deepseek_v32", "glm45", "granite"),
    *("hunyuan_a13b", "kimi_k2", "llama3_json", "minimax_m2", "mistral", "mistral_v11", "openai"),
    *("pythonic", "qwen3_coder"),
)
REASONING = ("qwen3", "deepseek_r1", "mistral", "openai_gptoss")


@dataclass(frozen=True, slots=True)
class SyntaxOptions:
    """Names of parsers: `auto` finds out from the chat template, `none` parses nothing.

    Raises ConfigError for an unknown one.
    """

    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO
    auto_tool_choice: bool = True

    def __post_init__(self) -> None:
        _check("--tool-call-parser", self.tool_call_parser, (AUTO, NONE, *CALLS))
        _check("--reasoning-parser", self.reasoning_parser, (AUTO, NONE, *REASONING))


def _check(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{flag} must be one of {', '.join(known)}, not {value!r}")
