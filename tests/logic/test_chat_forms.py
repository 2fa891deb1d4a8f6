"""In which form a template wants a chat, found out from the template alone."""

import json
from typing import Any

import pytest

from megainfer.text.chat_forms import ChatForms, Ids, Systems
from megainfer.text.chat_template import ChatTemplate

A = "c['function']['arguments']"
LONG = "call_0123456789abcdef01234567"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {})


def with_calls(body: str) -> ChatTemplate:
    loop = "{% for m in messages %}{% for c in m.tool_calls or [] %}BODY{% endfor %}{% endfor %}"
    return template(loop.replace("BODY", body))


def render(made: ChatTemplate, *messages: dict[str, Any]) -> str:
    return made.render(made.forms.fit(messages))


def user(text: str = "u") -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calling(*ids: str, arguments: Any = '{"a": "é"}', **more: Any) -> dict[str, Any]:
    calls = [{"id": i, "function": {"name": "f", "arguments": arguments}} for i in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def result(call_id: str, text: str = "r") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@pytest.mark.parametrize(
    ("body", "as_text", "shown"),
    [
        ("{{ '<' + " + A + " + '>' }}", True, '<{"a": "é"}>'),
        ("{{ '<' ~ " + A + " ~ '>' }}", True, '<{"a": "é"}>'),
        ("{{ " + A + " | trim }}", True, '{"a": "é"}'),
        ("{{ " + A + " }}", True, '{"a": "é"}'),
        ("{{ " + A + " | string | length }}", False, "10"),
        ("{{ " + A + " | tojson }}", False, '{"a": "é"}'),
        ("{{ " + A + " if " + A + " is string else " + A + " | tojson }}", False, '{"a": "é"}'),
        ("{% for k, v in " + A + ".items() %}{{ k }}={{ v }}{% endfor %}", False, "a=é"),
        ("{% for k, v in " + A + " | items %}{{ k }}={{ v }}{% endfor %}", False, "a=é"),
        ("{{ c.function | tojson }}", False, '{"name": "f", "arguments": {"a": "é"}}'),
        ("{{ raise_exception('no calls here') }}", False, None),
    ],
)
@pytest.mark.parametrize("given", ['{"a": "é"}', {"a": "é"}])
def test_arguments(body: str, as_text: bool, shown: str | None, given: Any) -> None:
    made = with_calls(body)
    assert made.forms.arguments_as_text == as_text
    if shown is not None:
        assert render(made, calling("a", arguments=given)) == shown


@pytest.mark.parametrize(
    ("test", "none"),
    [
        ("m.content is none", True),
        ("not (m.content is not none)", True),
        ("m.content is not string", True),
        ("not m.content", False),
        ("m.tool_calls", False),
    ],
)
def test_content_beside_calls(test: str, none: bool) -> None:
    made = template(
        "{% for m in messages %}{% if m.role == 'assistant' and (" + test + ") %}[calls]"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    assert made.forms.none_without_content == none
    assert render(made, user(), calling("a")) == "[u][calls]"


def test_a_template_that_prints_what_is_none_sees_an_empty_text() -> None:
    made = template("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert render(made, user(), calling("a"), said("b")) == "[u][][b]"


NINE = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('9') }}{% endif %}"
    "{{ c.id }}{% endfor %}{% if m.tool_call_id %}={{ m.tool_call_id }} {% endif %}{% endfor %}"
)


@pytest.mark.parametrize("given", [LONG, "toolu_01abc", "fc_1", "", "a", "ünï-code9"])
def test_ids_of_nine_letters(given: str) -> None:
    made = template(NINE)
    assert made.forms.ids is Ids.NINE
    one, _, other = render(made, calling(given), result(given)).strip().partition("=")
    assert one == other
    assert len(one) == 9
    assert one.isascii()
    assert one.isalnum()


def test_ids_that_fit_stay_and_others_remain_apart() -> None:
    made = template(NINE)
    assert render(made, calling("abcdefgh1"), result("abcdefgh1")) == "abcdefgh1=abcdefgh1 "
    assert len(set(render(made, calling("a", "b")).replace("=", ""))) > 9
    assert with_calls("{{ c.id }}").forms.ids is Ids.ANY
    assert render(with_calls("{{ c.id }}"), calling(LONG)) == LONG


def test_kimis_ids_are_numbered() -> None:
    made = template(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}<|tool_call_begin|>{{ c.id }}"
        "<|tool_call_argument_begin|>{% endfor %}"
        "{% if m.tool_call_id %}## Return of {{ m.tool_call_id }}{% endif %}{% endfor %}"
    )
    assert made.forms.ids is Ids.NUMBERED
    text = render(made, calling("functions.f:0"), result("functions.f:0"), calling("toolu_1"))
    text += render(made, calling("x"), result("x"))
    ids = ["functions.f:0", "functions.f:1", "functions.f:0"]
    assert text.count("## Return of functions.f:0") == 2
    assert [part.split("<")[0] for part in text.split("<|tool_call_begin|>")[1:]] == ids


ROLES = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}"
FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('first') }}{% endif %}{% endfor %}" + ROLES
)
IGNORING = ROLES.replace("[{{", "{% if m.role != 'system' or loop.first %}[{{") + ""
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}"
    "{% endif %}{% endfor %}" + ROLES
)


def test_system_messages_stay_where_a_template_takes_them() -> None:
    made = template(ROLES)
    assert (made.forms.systems, made.forms.more_systems) == (Systems.ANYWHERE, True)
    chat = [system("a"), system("b"), user(), said("s"), system("c"), user()]
    assert render(made, *chat) == "".join(f"[{m['role']} {m['content']}]" for m in chat)


def test_system_messages_are_joined_where_one_must_be_the_first() -> None:
    made = template(FIRST)
    assert made.forms.systems is Systems.FIRST
    text = render(made, system("a"), system("b"), user(), said("s"), system("c"), user("v"))
    assert text == "[system a\n\nb][user u][assistant s][user c][user v]"


def test_a_template_that_forgets_later_system_messages_has_them_as_a_users() -> None:
    made = template(IGNORING.replace("{{ m.content }}]", "{{ m.content }}]{% endif %}"))
    assert made.forms.systems is Systems.FIRST
    assert render(made, user(), said("s"), system("c")) == "[user u][assistant s][user c]"


def test_a_template_without_system_messages_has_them_before_the_users() -> None:
    made = template(NO_SYSTEM)
    assert made.forms.systems is Systems.NONE
    assert render(made, system("a"), system("b"), user(), said("s")) == (
        "[user a\n\nb\n\nu][assistant s]"
    )
    assert render(made, system("a")) == "[user a]"


def test_a_template_that_wants_turns_has_them() -> None:
    made = template(
        "{% for m in messages | rejectattr('role', 'equalto', 'system') %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{% endif %}{% endfor %}" + FIRST
    )
    assert made.forms.alternates
    text = render(made, system("a"), user("u"), user("v"), said("s"), said("t"), user("w"))
    assert text == "[system a][user u\n\nv][assistant s\n\nt][user w]"


def test_a_template_of_one_call_a_message_has_one() -> None:
    made = template(
        "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length != 1 %}"
        "{{ raise_exception('one') }}{% endif %}"
        "{% if m.tool_calls %}<{{ m.content }}{{ m.tool_calls[0].id }}>"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    assert made.forms.one_call
    several = calling("a", "b", "c", content="see")
    text = render(made, user(), several, result("a", "1"), result("b", "2"), user("v"))
    assert text == "[u]<seea>[1]<b>[2]<c>[v]"


THINKING = (
    "{% for m in messages %}{% if m.tool_calls and m.content and m.thinking %}"
    "{{ raise_exception('both') }}{% endif %}[{{ m.thinking }}|{{ m.content }}]{% endfor %}"
)


def test_thoughts_beside_content_and_calls() -> None:
    made = template(THINKING)
    assert not made.forms.thinks_and_speaks
    text = render(made, calling("a", content="c", thinking="t"), calling("b", thinking="t"))
    assert text == "[|c][t|]"
    assert template(ROLES).forms.thinks_and_speaks


@pytest.mark.parametrize("source", ["{{ raise_exception('never') }}", "always", "{{ 1 / 0 }}", ""])
def test_a_template_that_shows_nothing_is_taken_as_usual(source: str) -> None:
    forms = template(source).forms
    assert (forms.arguments_as_text, forms.ids, forms.one_call) == (False, Ids.ANY, False)


def test_what_is_no_chat_of_ours_stays_as_it_is() -> None:
    parts = [{"type": "text", "text": "u"}]
    odd = [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [{"function": None}]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": "{x"}}]},
    ]
    fitted = ChatForms(arguments_as_text=False).fit(odd)
    assert fitted[0] == odd[0]
    assert fitted[2]["tool_calls"] == odd[2]["tool_calls"]
    assert json.dumps(ChatForms(alternates=True).fit(odd))
