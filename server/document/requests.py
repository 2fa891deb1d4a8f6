"""What requests may hold, where types don't tell: ranges, counts, and the inside of messages."""

from typing import Any

from megainfer.sampling import (
    FLOAT_RANGES,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_COUNT,
    MAX_LOGIT_BIAS,
    MAX_N,
    MAX_PRIORITY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from server.openai.tools import MAX_TOOLS, NAME
from server.openai.wishes.values import MAX_PROMPTS

Json = dict[str, Any]
STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
STOPS = {"type": "array", "items": STOP, "maxItems": MAX_STOP_STRINGS}
STRING = {"type": "string"}
NULL = {"type": "null"}


def describe_requests(schemas: Json, vocab_size: int) -> None:
    """Put what is known beyond types into the schemas of bodies."""
    for name, more in _known(vocab_size).items():
        for field, limits in more.items():
            _narrow(schemas[name]["properties"][field], limits)
    del schemas["ChatMessage"]  # told in full where messages are
    schemas["TokenizeRequest"]["oneOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
        for name in ("prompt", "messages")
    ]


def _narrow(schema: Json, limits: Json) -> None:
    """Limits of a field that may be null are those of its other alternative."""
    alternatives = schema.get("anyOf", [])
    chosen = [part for part in alternatives if part != NULL]
    if "anyOf" in limits:
        schema["anyOf"] = [*limits["anyOf"], *(part for part in alternatives if part == NULL)]
    else:
        (chosen[0] if chosen else schema).update(limits)


def _known(vocab_size: int) -> dict[str, dict[str, Json]]:
    token = {"type": "integer", "minimum": 0, "maximum": vocab_size - 1}
    sampling = _sampling(token)
    chat = {"tools": _tools(_function_tool()), "messages": {"items": _chat_message()}}
    least = {"minimum": 1}
    top = {name: sampling[name] for name in ("temperature", "top_p")}
    messages = {"messages": {"items": _message()}, "tools": _tools(_messages_tool())}
    return {
        "CompletionRequest": {**sampling, "prompt": _prompt(token)},
        "ChatRequest": {**sampling, **chat, "max_tokens": least, "max_completion_tokens": least},
        "ResponsesRequest": {
            **top,
            "max_output_tokens": least,
            "input": {"anyOf": [STRING, _some(_input_item())]},
            "tools": _tools(_response_tool()),
        },
        "MessagesRequest": {
            **messages,
            **top,
            "top_k": sampling["top_k"],
            "max_tokens": least,
            "stop_sequences": STOPS,
        },
        "CountRequest": messages,
        "TokenizeRequest": {"messages": _some(_chat_message())},
        "DetokenizeRequest": {"tokens": {"items": token}},
    }


def _sampling(token: Json) -> dict[str, Json]:
    ranges: dict[str, Json] = {
        name: {"minimum": low, "maximum": high} for name, low, high in FLOAT_RANGES
    }
    bad = {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARACTERS}
    return {
        **ranges,
        "n": {"minimum": 1, "maximum": MAX_N},
        "top_k": {"minimum": -1, "maximum": MAX_COUNT},
        "min_tokens": {"minimum": 0, "maximum": MAX_COUNT},
        "max_tokens": {"minimum": 0},
        "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
        "priority": {"minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
        "truncate_prompt_tokens": {"minimum": -1, "not": {"const": 0}},
        "stop": {"anyOf": [STOP, STOPS]},
        "stop_token_ids": {"items": token, "maxItems": MAX_STOP_TOKEN_IDS},
        "allowed_token_ids": {"items": token},
        "bad_words": {"items": bad, "maxItems": MAX_BAD_WORDS},
        "logit_bias": {
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
            "maxProperties": MAX_LOGIT_BIAS,
        },
    }


def _prompt(token: Json) -> Json:
    text, ids = {"type": "string", "minLength": 1}, _some(token)
    several = [{**_some(kind), "maxItems": MAX_PROMPTS} for kind in (text, ids)]
    return {"anyOf": [text, ids, *several]}


def _some(items: Json) -> Json:
    return {"type": "array", "items": items, "minItems": 1}


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


def _text(*kinds: str) -> Json:
    part = _object(("type", "text"), type={"enum": list(kinds)}, text=STRING)
    return {"anyOf": [STRING, _some(part)]}


def _chat_message() -> Json:
    roles = {"enum": ["system", "developer", "user"]}
    said = _object(("role", "content"), role=roles, content=_text("text"))
    silent = {"anyOf": [_text("text"), NULL]}
    others = {"enum": ["assistant", "tool", "function"]}
    answered = _object(("role",), role=others, content=silent)
    call = _object(("function",), function=_object(("name",), name=STRING))
    calling = _object(("role", "tool_calls"), role={"const": "assistant"}, tool_calls=_some(call))
    return {"anyOf": [said, answered, calling]}


def _message() -> Json:
    roles = {"enum": ["user", "assistant", "system", "developer"]}
    return _object(("role", "content"), role=roles, content=_text("text"))


def _input_item() -> Json:
    roles = {"enum": ["system", "developer", "user", "assistant"]}
    content = _text("input_text", "output_text")
    said = _object(("role", "content"), type={"const": "message"}, role=roles, content=content)
    output = _object(
        ("type", "output"),
        type={"const": "function_call_output"},
        call_id=STRING,
        output=STRING,
    )
    return {"anyOf": [said, output]}


def _tools(tool: Json) -> Json:
    return {"items": tool, "maxItems": MAX_TOOLS}


def _function(parameters: str) -> dict[str, Json]:
    of_objects = _object((), type={"const": "object"})
    return {
        "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "description": {"type": ["string", "null"]},
        parameters: of_objects,
    }


def _function_tool() -> Json:
    function = _object(("name",), **_function("parameters"))
    return _object(("type", "function"), type={"const": "function"}, function=function)


def _response_tool() -> Json:
    return _object(("type", "name"), type={"const": "function"}, **_function("parameters"))


def _messages_tool() -> Json:
    return _object(("name", "input_schema"), **_function("input_schema"))
