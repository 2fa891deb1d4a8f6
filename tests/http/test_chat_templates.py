"""Chat templates against transformers' own rendering of them, and where they are found."""

import json
from pathlib import Path
from typing import Any

import pytest

from megainfer.errors import ModelError, RequestError
from megainfer.text.chat import Chat
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from tests.support.rendered import rendered_by
from tests.support.scripted_server import byte_level_backend, write_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <two> numbers, naïvely.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "how": {"enum": ["a", "b"]}},
            "required": ["x"],
        },
    },
}
CALL = {
    "id": "functions.add:0",
    "type": "function",
    "function": {"name": "add", "arguments": {"x": 1, "how": "ä<b>"}},
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + x?\n"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "functions.add:0"},
    {"role": "assistant", "content": " Two.", "reasoning_content": "Hm."},
    {"role": "user", "content": "Thanks & bye"},
]

# In the manner of each family; what they have in common with the real ones is the machinery.
TEMPLATES = {
    "channels": """\
{%- macro kind(schema) -%}
  {%- if schema.enum is defined -%}{{ schema.enum | map('tojson') | join(' | ') }}
  {%- else -%}{{ {'integer': 'number'}.get(schema.type, 'any') }}{%- endif -%}
{%- endmacro -%}
<|start|>system<|message|>Today is {{ strftime_now("%Y-%m-%d") | length }}.
{% if tools %}
namespace functions {
{% for tool in tools %}
// {{ tool.function.description }}
type {{ tool.function.name }} = (_: {
{%- for name, schema in tool.function.parameters.properties | items %}
 {{ name }}{{ '' if name in tool.function.parameters.required else '?' }}: {{ kind(schema) }},
{%- endfor %}
}) => any;
{% endfor %}
}
{%- endif -%}<|end|>
{%- set last = namespace(name=none) -%}
{%- for message in messages -%}
{%- if message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}{%- set last.name = call.name -%}
<|start|>assistant<|channel|>commentary to=functions.{{ call.name }}<|message|>
{{- call.arguments | tojson }}<|call|>
{%- elif message.role == 'tool' -%}
{%- if last.name is none %}{{ raise_exception("a result without a call") }}{%- endif -%}
<|start|>functions.{{ last.name }} to=assistant<|message|>{{ message.content | tojson }}<|end|>
{%- else -%}
<|start|>{{ message.role }}<|message|>{{ message.content | trim }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
    "arguments": """\
[gMASK]{% if tools %}<|system|>
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}{% endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'assistant' -%}
<|assistant|>
{%- if loop.index0 > ns.last_user and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{%- else %}<think></think>{% endif %}
{%- if m.content.strip() %}{{ '\\n' + m.content.strip() }}{% endif %}
{% for tc in m.tool_calls or [] %}
<tool_call>{{ tc.function.name }}
{% for k, v in tc.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' %}<|observation|>{% endif %}
<tool_response>{{ m.content }}</tool_response>
{%- else %}<|{{ m.role }}|>
{{ m.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '<think></think>' if not enable_thinking else '' }}
{%- endif %}""",
    "sections": """\
{%- macro show(content) -%}{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}{{ part.text }}{%- endfor -%}{%- endif -%}{%- endmacro -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>
{{- tools | tojson(separators=(',', ':')) }}<|im_end|>{%- endif -%}
{%- for message in messages -%}
{%- set name = message.get('name') or message.role -%}
<|im_{{ message.role }}|>{{ name }}<|im_middle|>{{ show(message.content) }}
{%- if message.tool_calls -%}<|tool_calls_section_begin|>
{%- for call in message.tool_calls -%}
<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string -%}{{ call.function.arguments }}
{%- else -%}{{ call.function.arguments | tojson }}{%- endif -%}<|tool_call_end|>
{%- endfor -%}<|tool_calls_section_end|>{%- endif -%}<|im_end|>
{%- endfor -%}""",
    "invokes": """\
{%- set toolcall_begin = '<minimax:tool_call>' -%}
{%- if tools -%}<tools>{% for tool in tools %}
<tool>{{ tool.function | tojson(sort_keys=True, indent=1) }}</tool>{% endfor %}
</tools>{%- endif -%}
{%- for m in messages -%}
]~b]{{ m.role }}
{% if m.tool_calls %}{{ toolcall_begin }}
{% for call in m.tool_calls %}<invoke name="{{ call.function.name }}">
{% for k, v in call.function.arguments | dictsort %}
<parameter name="{{ k }}">{{ v | tojson if v is not string else v }}</parameter>
{% endfor %}</invoke>
{% endfor %}</minimax:tool_call>{% else %}{{ m.content }}{% endif %}[e~[
{% endfor -%}
{%- if add_generation_prompt %}]~b]ai
<think>
{% endif -%}""",
    "training": """\
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{% if loop.index > 4 %}{% break %}{% endif %}
{% set inside = 'out' %}{% generation %}{% set inside = 'in' %}{{ m.content }}{{ inside }}
{% endgeneration %}{{ inside }}{{ bos_token }}
{% endfor %}{{ dict(a=1) | tojson }}{{ dict.fromkeys(['k'], 2) | tojson }}""",
}


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("with_tools", [False, True])
@pytest.mark.parametrize("prompt", [False, True])
def test_they_are_rendered_as_by_transformers(
    tmp_path: Path, name: str, with_tools: bool, prompt: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path, byte_level_backend(), bos_token="<|endoftext|>")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tools = [TOOL] if with_tools else None
    for variables in ({}, {"enable_thinking": True}):
        expected = theirs.apply_chat_template(
            CHAT, tools=tools, tokenize=False, add_generation_prompt=prompt, **variables
        )
        assert rendered_by(ours, CHAT, tools, prompt, variables) == expected
        assert len(expected) > 50


@pytest.mark.parametrize(
    "source",
    [
        "{{ dict.__subclasses__() }}",
        "{% set ns = namespace(__class__=1) %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.mro() }}",
        "{% generation %}{{ 1 / 0 }}{% endgeneration %}",
    ],
)
def test_what_a_template_must_not_do(source: str) -> None:
    with pytest.raises(RequestError, match="the model's chat template"):
        ChatTemplate(source, {}).render(CHAT)


# --- parts of a content ---------------------------------------------------------------------------

LOOPING = (
    "{% for m in messages %}{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>{% endfor %}{% for part in m.content %}{% if part['type'] == 'text' %}"
    "[{{ part['text'] }}]{% endif %}{% endfor %}{% endfor %}"
)
ASKING = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [(LOOPING, "[Hi][]"), (ASKING, "Hi"), ("{{ messages[0].content }}", "Hi")],
)
def test_a_template_that_loops_over_parts_has_parts(source: str, expected: str) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    assert ChatTemplate(source, {}).render(said) == expected.replace("[]", "")


# --- where templates and special tokens are -------------------------------------------------------


def bare(folder: Path) -> Path:
    return write_tokenizer(folder, byte_level_backend(), chat_template=None)


def rendered(folder: Path, **options: Any) -> str:
    return rendered_by(Tokenizer.load(folder), [{"role": "user", "content": "Hi"}], **options)


def test_a_processors_template(tmp_path: Path) -> None:
    (bare(tmp_path) / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert rendered(tmp_path) == "legacy"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    assert rendered(tmp_path) == "own"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(tmp_path) == "file"


def test_templates_in_a_folder_of_their_own(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    (bare(tmp_path) / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tools, expected in ((None, "plain"), ([TOOL], "with tools")):
        assert rendered(tmp_path, tools=tools) == expected
        assert theirs.apply_chat_template(CHAT, tools=tools, tokenize=False) == expected


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    (bare(tmp_path) / "chat_template.json").write_text('{"chat_template": 3}')
    with pytest.raises(ModelError, match=r"chat_template\.json must be a string"):
        Tokenizer.load(tmp_path)


def test_special_tokens_of_their_own_file(tmp_path: Path) -> None:
    """As older checkpoints have them; it wins unless tokenizer_config.json has tokens by id."""
    named = {"bos_token": {"content": "The"}, "eos_token": "fox", "additional_special_tokens": []}
    (bare(tmp_path) / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} {{ eos_token }}")
    assert rendered(tmp_path) == "The fox"
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.is_silent(tokenizer.token_id("The"), skip_special_tokens=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert rendered(tmp_path) == " <|im_end|>"


def test_added_tokens_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    size = Tokenizer.load(bare(tmp_path)).vocab_size
    added = {"<two>": size + 1, "<one>": size, "<|im_end|>": 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("<two><one>") == [size + 1, size]
    assert tokenizer.token_id("<|im_end|>") == 2
    (tmp_path / "added_tokens.json").write_text('{"<one>": 5}')
    with pytest.raises(ModelError, match="the token '<one>' is 5 among the added ones, but"):
        Tokenizer.load(tmp_path)


def test_a_chat_is_encoded_without_special_tokens_around_it(tmp_path: Path) -> None:
    (bare(tmp_path) / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer, chat = Tokenizer.load(tmp_path), Chat([{"role": "user", "content": "The fox"}])
    encoded = tokenizer.encode_chat(chat, rendered_by(tokenizer, chat.messages))
    assert encoded.text == "The fox"
