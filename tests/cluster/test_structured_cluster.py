"""Structured output on attention nodes: a random model's garbage, forced into shape."""

import json
import re
from pathlib import Path
from time import monotonic

import jsonschema
import msgspec
import pytest

from megainfer.messages.requests import Abort, FinishReason, Submit
from megainfer.structured import grammar as grammars
from megainfer.structured.grammar import Grammar
from megainfer.text.tokenizer import Tokenizer
from tests.support.checkpoints import write_checkpoint
from tests.support.local_cluster import LocalCluster, greedy_submit, kv_bytes
from tests.support.scripted_server import write_tokenizer

EOS = 2
MAX_TOKENS = 240
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["a", "b"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 99}},
        "inner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/inner"}]},
    },
    "required": ["name", "kind", "counts", "inner"],
    "additionalProperties": False,
    "$defs": {
        "inner": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
    },
}
SCHEMA["properties"]["counts"]["maxItems"] = 3
REGEX = r"(\d{3}-){2}[a-f]{2,5}"
CHOICES = ["red", "reddish", 'a "quoted" green']


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("structured")
    write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400)
    return write_tokenizer(folder)


def submit(request_id: str, grammar: Grammar | None, seed: int) -> Submit:
    plain = greedy_submit(request_id, [5, 6, 7, seed + 3], MAX_TOKENS)
    return msgspec.structs.replace(
        plain, temperature=1.0, seed=seed, stop_token_ids=[EOS], grammar=grammar
    )


def drain(cluster: LocalCluster) -> None:
    """Until every answer has ended, those included that are still being compiled."""
    deadline = monotonic() + 60
    while any(a.finish_reason is None and a.failure is None for a in cluster.answers.values()):
        cluster.turn()
        assert monotonic() < deadline, "requests are stuck"
    cluster.check_integrity()


def texts_of(cluster: LocalCluster, folder: Path) -> dict[str, str]:
    tokenizer = Tokenizer.load(folder)
    return {name: tokenizer.decode(a.tokens) for name, a in cluster.answers.items()}


def check(text: str, kind: str) -> None:
    if kind == "schema":
        jsonschema.validate(json.loads(text), SCHEMA)
    elif kind == "regex":
        assert re.fullmatch(REGEX, text)
    else:
        assert text in CHOICES


GRAMMARS = {
    "schema": grammars.json_schema(SCHEMA, "schema"),
    "regex": grammars.regex(REGEX, "regex"),
    "choice": grammars.choice(CHOICES, "choice"),
}


def test_every_answer_has_its_shape_and_others_are_left_alone(folder):
    plain = [greedy_submit(f"plain-{i}", [9, i + 3, 11], 40) for i in range(4)]
    alone = LocalCluster(folder, 2, 1, 2)
    for request in plain:
        alone.submit(0, request)
    alone.drain()

    cluster = LocalCluster(folder, 2, 1, 2)
    for request in plain:
        cluster.submit(0, request)
    for seed in range(8):
        for kind, grammar in GRAMMARS.items():
            cluster.submit(0, submit(f"{kind}-{seed}", grammar, seed))
    drain(cluster)

    for name, text in texts_of(cluster, folder).items():
        if name.startswith("plain"):
            assert cluster.answers[name].tokens == alone.answers[name].tokens
        else:
            assert cluster.answers[name].finish_reason is FinishReason.STOP, text
            check(text, name.partition("-")[0])


def test_a_preempted_answer_keeps_its_shape(folder):
    whole = LocalCluster(folder, 1, 1, 1)
    memory = kv_bytes(whole.plan, 256)
    tight = LocalCluster(folder, 1, 1, 1, kv_cache_memory=memory, max_model_len=256)
    for cluster in (whole, tight):
        for seed in range(10):
            cluster.submit(0, submit(f"schema-{seed}", GRAMMARS["schema"], seed))
        drain(cluster)
    assert tight.attention[0].scheduler.counters()["preemptions"] > 0
    assert texts_of(tight, folder) == texts_of(whole, folder)
    for text in texts_of(tight, folder).values():
        check(text, "schema")


def test_anything_goes_before_the_answer_begins(folder):
    cluster = LocalCluster(folder, 1, 1, 1)
    begins = 77
    grammar = msgspec.structs.replace(GRAMMARS["choice"], after=begins)
    for seed in range(6):
        thinking = submit(f"{seed}", grammar, seed)
        cluster.submit(0, msgspec.structs.replace(thinking, logit_bias={begins: 3.0, EOS: -100.0}))
    drain(cluster)
    ended = [a for a in cluster.answers.values() if begins in a.tokens]
    assert len(ended) > 2
    tokenizer = Tokenizer.load(folder)
    for answer in ended:
        spoken = answer.tokens[answer.tokens.index(begins) + 1 :]
        assert tokenizer.decode(spoken) in CHOICES


def test_a_grammar_that_is_wrong_fails_its_request_alone(folder):
    cluster = LocalCluster(folder, 1, 1, 1)
    cluster.submit(0, submit("bad", grammars.regex("(", "regex"), 0))
    cluster.submit(0, submit("good", GRAMMARS["choice"], 0))
    drain(cluster)
    assert "unclosed group" in cluster.answers["bad"].failure
    check(texts_of(cluster, folder)["good"], "choice")


def test_an_abort_reaches_a_request_that_is_being_compiled(folder):
    cluster = LocalCluster(folder, 1, 1, 1)
    cluster.submit(0, submit("gone", GRAMMARS["schema"], 0))
    cluster.attention[0].hear(Abort("gone"))
    del cluster.answers["gone"]  # it would be a KeyError if anything of it were heard
    cluster.submit(0, submit("stays", GRAMMARS["choice"], 0))
    drain(cluster)
