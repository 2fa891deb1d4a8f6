"""Structured output offline."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from megainfer import LLM, SamplingParams, StructuredOutputsParams
from megainfer.errors import RequestError
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer
from tests.support.tools import TEMPLATE

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
MAX_TOKENS = 200


def shaped(**wanted: Any) -> SamplingParams:
    shape = StructuredOutputsParams(**wanted)
    return SamplingParams(max_tokens=MAX_TOKENS, seed=1, structured_outputs=shape)


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Iterator[LLM]:
    folder: Path = tmp_path_factory.mktemp("llm_structured")
    write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400)
    with LLM(str(write_tokenizer(folder, chat_template=TEMPLATE))) as llm:
        yield llm


def test_each_prompt_has_its_shape(llm):
    wishes = [
        shaped(json=SCHEMA),
        shaped(json=json.dumps(SCHEMA)),
        shaped(regex="[a-f]{3}-[0-9]"),
        shaped(choice=["red", "green"]),
        shaped(grammar='start: "x" "y"+'),
        SamplingParams(max_tokens=3, ignore_eos=True),
    ]
    texts = [r.outputs[0].text for r in llm.generate(["Hi"] * len(wishes), wishes, progress=False)]
    for text in texts[:2]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert re.fullmatch("[a-f]{3}-[0-9]", texts[2])
    assert texts[3] in ("red", "green")
    assert re.fullmatch("xy+", texts[4]) or len(texts[4]) >= MAX_TOKENS


def test_several_answers_of_a_chat(llm):
    wish = SamplingParams(n=3, structured_outputs=StructuredOutputsParams(choice=["yes", "no"]))
    (result,) = llm.chat([{"role": "user", "content": "Hi"}], wish, progress=False)
    assert {output.text for output in result.outputs} <= {"yes", "no"}
    assert len(result.outputs) == 3


def test_a_grammar_that_cannot_be_compiled_keeps_all_from_starting(llm):
    with pytest.raises(RequestError, match="structured_outputs"):
        llm.generate(["Hi", "Hi"], [shaped(regex="a+"), shaped(regex="(")], progress=False)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "exactly one wish, but holds none"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"choice": []}, "structured_outputs.choice must be a list"),
        ({"regex": 3}, "structured_outputs.regex must be a string"),
        ({"json": "{"}, "structured_outputs.json isn't valid JSON"),
    ],
)
def test_what_cannot_be_a_shape_is_named(wanted, words):
    with pytest.raises(RequestError, match=words):
        StructuredOutputsParams(**wanted)


def test_another_kind_of_thing_is_no_shape():
    with pytest.raises(RequestError, match="must be StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})
