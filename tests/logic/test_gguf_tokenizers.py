"""Tokenizers out of GGUF files give what the models' own give."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
from tokenizers import pre_tokenizers

from megainfer.errors import ModelError
from megainfer.gguf.header import read_header
from megainfer.gguf.metadata import Metadata
from megainfer.models.gguf.convert import end_tokens
from megainfer.text.chat import Chat
from megainfer.text.gguf.build import build_tokenizer
from megainfer.text.gguf.cutting import CUTTINGS
from megainfer.text.gguf.parts import read_parts
from megainfer.text.gguf.write import write_tokenizer
from megainfer.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.gguf_files.tokenizers import (
    SAMPLE,
    SPECIALS,
    byte_level,
    sentence_piece,
    trained,
)


@cache
def learnt() -> tuple[list[str], list[str]]:
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False))


def metadata_of(path: Path, add) -> Metadata:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Metadata(path, read_header(path).metadata)


def loaded(tmp_path: Path, add) -> Tokenizer:
    write_tokenizer(metadata_of(tmp_path / "m.gguf", add), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(("pre", "name"), [("qwen2", "Qwen2Tokenizer"), ("gpt-2", "GPT2Tokenizer")])
def test_byte_level_tokenizers_equal_transformers(tmp_path, pre, name):
    transformers = pytest.importorskip("transformers")
    tokens, merges = learnt()
    own = loaded(tmp_path, byte_level(tokens, merges, pre))
    vocabulary = {text: token for token, text in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    theirs = getattr(transformers, name)(vocab=vocabulary, merges=pairs)
    for text in (SAMPLE, "", "a", "  x\n\n\n y", "12 345", "cafe\u0301 we'LL", "ÅÅ 🦙"):
        expected = theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert own.encode(text) == expected
        if pre == "gpt-2":  # the other one composes texts
            assert own.decode(expected) == text


def test_special_tokens_are_spelled_out_and_left_out(tmp_path):
    tokens, merges = learnt()
    own = loaded(tmp_path, byte_level(tokens, merges, "qwen2"))
    first = len(tokens)
    assert own.vocab_size == first + 4  # without the padding
    assert own.encode("<|im_end|><tool>") == [first + 2, first + 3]
    assert own.decode([first + 2, first + 3]) == "<tool>"
    assert own.config["eos_token"] == "<|im_end|>"
    chat = Chat([{"role": "user", "content": "a"}])
    text = own.chat_templates["default"].render_chat(chat.messages)
    assert text == "<|im_start|>a<|im_end|>"


def test_end_tokens_are_those_that_are_named_and_those_that_say_so(tmp_path):
    tokens, merges = learnt()
    metadata = metadata_of(tmp_path / "m.gguf", byte_level(tokens, merges, "qwen2"))
    first = len(tokens)
    assert end_tokens(metadata) == [first + SPECIALS.index("<|im_end|>"), first]


PIECES = {
    "qwen2": ["It", "'S", " ", "1", "2", "3", "4", "'ll", " Ab", "?!\n\n", " ", " x"],
    "llama-bpe": ["It", "'S", " ", "123", "4", "'ll", " Ab", "?!\n\n", " ", " x"],
    "gpt-4o": ["It'S", " ", "123", "4", "'ll", " Ab", "?!\n\n", " ", " x"],
    "tekken": ["It", "'S", " ", "1", "2", "3", "4", "'ll", " Ab", "?!\n\n", " ", " x"],
    "gpt-2": ["It", "'", "S", " 1234", "'ll", " Ab", "?!", "\n\n ", " x"],
    "starcoder": ["It", "'", "S", " ", "1", "2", "3", "4", "'ll", " Ab", "?!", "\n\n ", " x"],
    "deepseek-v3": ["It", "'S", " ", "123", "4", "'ll", " Ab", "?!\n\n", " ", " x"],
    "deepseek-llm": ["It", "'", "S", " ", "1234", "'", "ll", " Ab", "?!", "\n", "\n", " ", " x"],
}


@pytest.mark.parametrize("pre", PIECES)
def test_texts_are_cut_as_the_models_cut_them(tmp_path, pre):
    tokens, merges = learnt()
    metadata = metadata_of(tmp_path / "m.gguf", byte_level(tokens, merges, pre))
    parts = read_parts(metadata)
    assert parts is not None
    cutter = build_tokenizer(parts).pre_tokenizer
    text = "It'S 1234'll Ab?!\n\n  x"
    spans = [span for _, span in cutter.pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == PIECES[pre]


def test_every_expression_is_one(tmp_path):
    tokens, merges = learnt()
    for number, pre in enumerate(CUTTINGS):
        metadata = metadata_of(tmp_path / f"{number}.gguf", byte_level(tokens, merges, pre))
        parts = read_parts(metadata)
        assert parts is not None
        tokenizer = build_tokenizer(parts)
        assert tokenizer.decode(tokenizer.encode(SAMPLE).ids) == SAMPLE


PIECE_LIST = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc", "▁b", "ca"]
SCORES = [-9.0, -8.0, -7.0, -6.0, -3.0, -2.0, -5.0, -1.0, -4.0, -6.5, -2.5]


def merged(text: str) -> list[str]:
    """SentencePiece's BPE: of all neighbours that make a piece, the best-scored, then again."""
    scores = dict(zip(PIECE_LIST, SCORES, strict=True))
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores.get(a + b), -i) for i, (a, b) in enumerate(pairwise(parts))]
        best = max((pair for pair in pairs if pair[0] is not None), default=None)
        if best is None:
            return parts
        at = -best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("text", ["abc", "ab c", "abcabc ab", "cab bca", "a  b", "aé b"])
def test_sentence_piece_merges_the_best_scored_first(tmp_path, text):
    own = loaded(tmp_path, sentence_piece(PIECE_LIST, SCORES))
    expected = [
        piece
        for part in merged(text)
        for piece in ([part] if part in PIECE_LIST else [f"<0x{b:02X}>" for b in part.encode()])
    ]
    ids = own.encode(text)
    assert ids[0] == own.token_id("<s>")  # added unless the file says otherwise
    assert [own.piece(token) for token in ids[1:]] == expected
    assert own.decode(ids) == text
    assert own.encode(text, add_special_tokens=False) == ids[1:]


def without(key: str, value=None):
    def added(writer: gguf.GGUFWriter) -> None:
        byte_level(*learnt(), "qwen2")(writer)
        for data in writer.kv_data:
            if value is None:
                data.pop(key, None)
            elif key in data:
                data[key].value = value

    return added


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("tokenizer.ggml.pre", "viking"), "pre is 'viking', a way of cutting.*qwen2"),
        (without("tokenizer.ggml.pre"), "known: chatglm-bpe"),
        (without("tokenizer.ggml.model", "t5"), "model is 't5', which isn't read"),
        (without("tokenizer.ggml.merges", ["ab"]), "'ab' is no merge"),
        (without("tokenizer.ggml.merges", ["zz qq"]), "its tokenizer isn't one"),
        (without("tokenizer.ggml.token_type", [1]), "but types of 1"),
        (without("tokenizer.ggml.eos_token_id", 10**6), "eos_token_id is 1000000, but there are"),
        (without("tokenizer.ggml.tokens", ["a", "a"]), "2 tokens, but must have.*different"),
        (without("tokenizer.ggml.tokens", ["a" * 5000]), "a token of 5000 characters"),
    ],
)
def test_what_is_no_tokenizer_that_is_known_is_named(tmp_path, change, told):
    with pytest.raises(ModelError, match=told):
        loaded(tmp_path, change)
