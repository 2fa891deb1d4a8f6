"""Which parsers a chat template calls for."""

from pathlib import Path

import pytest

from megainfer.errors import ConfigError
from megainfer.frontend.syntax_options import CALLS, SyntaxOptions
from megainfer.text.tokenizer import Tokenizer
from server.openai.syntax import AnswerSyntax
from server.parsing.notations import NOTATIONS
from tests.support.scripted_server import byte_level_backend, write_tokenizer


@pytest.mark.parametrize(
    ("template", "calls", "thinks"),
    [
        ("{{ messages }}", None, False),
        ("<tool_call> <think>", "hermes", True),
        ("<tool_call><function=", None, False),
        ("<tool_call><function=f><parameter=x>", "qwen3_coder", False),
        ('format {"name": function name, "parameters": dictionary', "llama3_json", False),
        ("as [func_name1(params_name1=params_value1)]", "pythonic", False),
        ("<｜tool▁calls▁begin｜> ```json", "deepseek_v3", False),
        ("<｜tool▁calls▁begin｜>", "deepseek_v31", False),
        ("[TOOL_CALLS]", "mistral", False),
        ("[TOOL_CALLS]name[ARGS] [THINK]", "mistral_v11", True),
        ("<|tool_call|>", "granite", False),
        ("<tool_calls>", "hunyuan_a13b", False),
        ("<tool_call>{name}\n<arg_key> <think>", "glm45", True),
        ("<|tool_calls_section_begin|>", "kimi_k2", False),
        ("<minimax:tool_call> <tool_call> <think>", "minimax_m2", True),
        ("<｜DSML｜invoke", "deepseek_v32", False),
    ],
)
def test_what_a_template_shows(tmp_path: Path, template, calls, thinks):
    folder = write_tokenizer(tmp_path, byte_level_backend(), chat_template=template)
    tokenizer = Tokenizer.load(folder)
    found = AnswerSyntax.of(SyntaxOptions(), tokenizer)
    assert (found.calls, found.thinks) == (NOTATIONS.get(calls), thinks)
    nothing = AnswerSyntax.of(SyntaxOptions("none", "none"), tokenizer)
    assert (nothing.calls, nothing.thinks) == (None, False)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        (SyntaxOptions(), True),
        (SyntaxOptions(tool_call_parser="none"), True),
        (SyntaxOptions("none", "openai_gptoss"), True),
        (SyntaxOptions(auto_tool_choice=False), True),
        (SyntaxOptions("none", "none"), False),
    ],
)
def test_a_template_with_channels(tmp_path: Path, options: SyntaxOptions, channels: bool) -> None:
    template = "<|start|>assistant<|channel|>final<|message|>"
    folder = write_tokenizer(tmp_path, byte_level_backend(), chat_template=template)
    found = AnswerSyntax.of(options, Tokenizer.load(folder))
    assert (found.channels, found.thinks) == (channels, False)


def test_options_name_the_formats_that_there_are():
    assert set(CALLS) == set(NOTATIONS)
    with pytest.raises(ConfigError, match="--tool-call-parser must be one of"):
        SyntaxOptions(tool_call_parser="xml")
