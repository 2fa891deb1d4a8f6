"""The tokenizer against transformers; text pieces; stop strings; the template sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from megainfer.errors import ModelError, RequestError
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.detokenizer import IncrementalDetokenizer, StopStrings
from megainfer.text.token_text import TokenTexts
from megainfer.text.tokenizer import Tokenizer, load_tokenizer
from megainfer.text.tokenizers.fast import SHORT, FastBackend
from tests.support.rendered import rendered_by
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    SENTENCES,
    byte_level_backend,
    sentencepiece_backend,
    write_tokenizer,
)

BYTE_LEVEL = Tokenizer(FastBackend(byte_level_backend()), {})
SENTENCEPIECE = Tokenizer(FastBackend(sentencepiece_backend()), {})
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <b>wörld</b> 😀"},
]

ADDED_TOKEN = {"__type": "AddedToken", "content": "The", "special": True}


def pieces(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


# --- loading, encoding, chat ------------------------------------------------------------------


@pytest.mark.parametrize("adds_beginning", [False, True])
@pytest.mark.parametrize(
    "config",
    [{}, {"bos_token": "<|endoftext|>", "add_bos_token": True}, {"bos_token": ADDED_TOKEN}],
)
def test_ids_and_chats_equal_those_of_transformers(
    tmp_path: Path, config: dict, adds_beginning: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = byte_level_backend()
    if adds_beginning:
        backend.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    write_tokenizer(tmp_path, backend, **config)
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ours.encode("x")[0] == 0 or not adds_beginning
    for text in [*SENTENCES, "", " x", "<|im_start|>a<|im_end|>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    for prompt in (True, False):
        assert rendered_by(ours, MESSAGES, prompt=prompt) == (
            theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        )


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = byte_level_backend()
    full = backend.encode(SENTENCES[0]).ids
    backend.enable_truncation(3)
    backend.enable_padding(length=500)
    assert Tokenizer.load(write_tokenizer(tmp_path, backend)).encode(SENTENCES[0]) == full


def test_a_special_token_is_skipped_even_if_only_the_configuration_says_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, eos_token="The"))
    assert tokenizer.decode(tokenizer.encode("The fox")) == " fox"


def test_chat_templates_from_a_file_and_by_name(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain {{ eos_token }}"},
        {"name": "tool_use", "template": "with {{ tools | length }}"},
    ]
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, chat_template=named))
    assert rendered_by(tokenizer, MESSAGES) == "plain <|im_end|>"
    assert rendered_by(tokenizer, MESSAGES, tools=[{"name": "f"}]) == "with 1"
    (tmp_path / "chat_template.jinja").write_text("from a file")
    assert rendered_by(Tokenizer.load(tmp_path), MESSAGES) == "from a file"


def test_a_model_without_a_chat_template_says_what_to_do(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, chat_template=None))
    with pytest.raises(RequestError, match=r"no chat template; use /v1/completions"):
        rendered_by(tokenizer, MESSAGES)


def test_folders_without_a_tokenizer_and_with_a_broken_one(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="isn't a tokenizer"):
        load_tokenizer(tmp_path)


# --- the template sandbox -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages[0].__init__.__globals__['os'].system('true') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_escapes_fails_or_refuses_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError, match="the model's chat template"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_internals_are_invisible_to_a_template() -> None:
    source = "[{{ raise_exception.__globals__ }}{{ ''.__class__ }}]"
    assert ChatTemplate(source, {}).render(MESSAGES) == "[]"


def test_template_extras_of_hugging_face() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m | tojson }}{% endfor %}{% generation %}{{ strftime_now('%Y') | length }}"
        "{% endgeneration %}{{ enable_thinking }}"
    )
    text = ChatTemplate(source, {}).render(
        [{"content": "<ä>"}, {}], variables={"enable_thinking": False}
    )
    assert text == '{"content": "<ä>"}4False'


def test_template_variables_cannot_replace_the_messages() -> None:
    with pytest.raises(RequestError, match="must not set messages"):
        ChatTemplate(CHAT_TEMPLATE, {}).render(MESSAGES, variables={"messages": []})


def test_the_refusal_of_a_template_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render(MESSAGES)


# --- pieces of text -------------------------------------------------------------------------------


@given(st.text(max_size=40))
@settings(max_examples=80)
def test_pieces_add_up_and_never_hold_half_a_character(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        ids = tokenizer.encode(text)
        parts = pieces(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids)
        assert "".join(parts).count("\ufffd") == tokenizer.decode(ids).count("\ufffd")


@given(st.lists(st.integers(0, 400), max_size=60), st.booleans())
@settings(max_examples=150)
def test_any_tokens_give_the_text_of_all_of_them(ids: list[int], skip: bool) -> None:
    """Random tokens are mostly no UTF-8; 400 is beyond the vocabulary."""
    assert "".join(pieces(BYTE_LEVEL, ids, skip)) == BYTE_LEVEL.decode(ids, skip)


def test_a_character_comes_whole_with_its_last_byte() -> None:
    byte = {value: 3 + value for value in range(256)}
    ids = [byte[value] for value in "😀é".encode()]
    assert pieces(SENTENCEPIECE, ids) == ["", "", "", "😀", "", "é", ""]


def test_the_space_before_a_word_survives_skipped_tokens() -> None:
    backend = sentencepiece_backend()
    a, cd, end = (backend.token_to_id(text) for text in ("▁a", "▁cd", "</s>"))
    assert pieces(SENTENCEPIECE, [a, *[end] * 12, cd]) == ["a", *[""] * 12, " cd", ""]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    ids = BYTE_LEVEL.encode("😀")
    assert "".join(pieces(BYTE_LEVEL, ids[:-1])) == BYTE_LEVEL.decode(ids[:-1]) == "\ufffd"


@pytest.mark.parametrize("byte", [0xFF, 0x80, 0xE4])
def test_work_per_token_is_bounded(byte: int) -> None:
    """Also for bytes that never become a character."""

    class Counting(Tokenizer):
        longest = 0

        def decode(self, ids, skip_special_tokens=True):
            Counting.longest = max(Counting.longest, len(ids))
            return super().decode(ids, skip_special_tokens)

    ids = [3 + byte] * 500
    text = "".join(pieces(Counting(FastBackend(sentencepiece_backend()), {}), ids))
    assert set(text) == {"\ufffd"}
    assert Counting.longest <= 16


# --- stop strings ---------------------------------------------------------------------------------


def cut(text: str, stops: list[str]) -> str:
    """Before the stop string that is complete first; the longest of several."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@given(
    st.lists(st.text("ab", max_size=5), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=300)
def test_stop_strings_cut_wherever_the_pieces_are_torn(parts: list[str], stops: list[str]) -> None:
    stopper, out = StopStrings(stops), ""
    for part in parts:
        out += stopper.push(part)
        assert cut("".join(parts), stops).startswith(out), "text was given out too early"
        if stopper.matched is not None:
            break
    else:
        out += stopper.flush()
    assert out == cut("".join(parts), stops)
    assert (stopper.matched is not None) == any(stop in "".join(parts) for stop in stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stopper = StopStrings(["</s>", "User:"])
    assert [stopper.push(part) for part in ["Hi <", "/b> U", "ser", " x"]] == [
        "Hi ",
        "</b> ",
        "",
        "User x",
    ]


def first_end(text: str, stops: list[str], spared: int) -> tuple[int, str] | None:
    """Where the first of the strings ends that ends after `spared` characters, by trying all."""
    ends = [
        (end, -len(stop), stop)
        for stop in stops
        for end in range(spared + 1, len(text) + 1)
        if text[:end].endswith(stop)
    ]
    return (min(ends)[0], min(ends)[2]) if ends else None


@given(
    parts=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    spared=st.integers(0, 8),
    included=st.booleans(),
)
def test_stop_strings_that_end_too_early_are_passed_over(parts, stops, spared, included) -> None:
    stopper, out = StopStrings(stops, included), ""
    for count, part in enumerate(parts):
        out += stopper.push(part, may_end=count >= spared)
        if stopper.matched is not None:
            break
    else:
        out += stopper.flush()
    text, early = "".join(parts), len("".join(parts[:spared]))
    found = first_end(text, stops, early)
    if found is None:
        assert (out, stopper.matched) == (text, None)
    else:
        end, stop = found
        assert stopper.matched == stop
        assert out == text[: end if included else end - len(stop)]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte", "sentencepiece"])
def test_a_continued_text_keeps_the_space_between(tokenizer: Tokenizer) -> None:
    text = "ab cd The fox 😀 人 x"
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        detokenizer = IncrementalDetokenizer(tokenizer, after=ids[:cut])
        rest = "".join([detokenizer.push(token) for token in ids[cut:]]) + detokenizer.flush()
        head = tokenizer.decode(ids[:cut])
        if head.endswith("\ufffd"):  # half a character on either side
            assert text.endswith(rest.lstrip("\ufffd"))
        else:
            assert head + rest == text


# --- single tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte", "sentencepiece"])
def test_bytes_of_tokens_are_the_texts(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT := "ab cd, Würde 😀 <0xZZ> 人")
    assert b"".join(map(texts.bytes_of, ids)).decode().removeprefix(" ") == TEXT
    assert texts.bytes_of(10**6) == b""


def test_special_tokens_are_spelled_out_and_without_a_tokenizer_their_number_is() -> None:
    texts = TokenTexts(BYTE_LEVEL)
    (end,) = BYTE_LEVEL.encode("<|im_end|>")
    assert texts.text_of(end) == "<|im_end|>"
    assert texts.is_silent(end, skip_special_tokens=True)
    assert TokenTexts(None).text_of(7) == "token_id:7"


# --- generation_config.json -----------------------------------------------------------------------


def test_end_tokens_and_sampling_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults((7,))
    generation = {"eos_token_id": [5, 6], "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults((5, 6), 0.6, 0.95, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"temperature": 9}', "temperature must be between"),
        ('{"eos_token_id": "x"}', "eos_token_id"),
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_a_wrong_generation_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        GenerationDefaults.load(tmp_path)


# --- long texts -----------------------------------------------------------------------------------


def test_a_long_text_is_encoded_and_decoded_as_its_parts_are() -> None:
    backend = FastBackend(byte_level_backend())
    lines = [f"The quick brown fox {number}.\n" for number in range(400)]
    apart = [token for line in lines for token in backend.encode(line, False)]
    assert backend.encode("".join(lines), False) == apart
    assert len(apart) > 2 * SHORT
    assert backend.decode(apart, False) == "".join(lines)


@pytest.mark.parametrize(("normalizer", "factor"), [(None, 1), (normalizers.NFC(), 4)])
def test_a_text_has_at_least_as_many_tokens_as_the_longest_one_allows(
    normalizer: normalizers.NFC | None, factor: int
) -> None:
    library = byte_level_backend()
    if normalizer is not None:
        library.normalizer = normalizer
    backend = FastBackend(library)
    longest = len("<|endoftext|>") * factor
    assert backend.longest == longest

    @given(text=st.text(alphabet="aä \n\u0301\u0345\u0313\u03b1한<|endoftx>", max_size=60))
    def check(text: str) -> None:
        assert len(backend.encode(text, False)) * longest >= len(text)

    check()


def stripping(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Strip()


def splitting_words(backend: tokenizers.Tokenizer) -> None:
    words = pre_tokenizers.Split(" ", "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def taking_spaces(backend: tokenizers.Tokenizer) -> None:
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])


@pytest.mark.parametrize("change", [stripping, splitting_words, taking_spaces])
def test_where_text_may_be_dropped_no_length_is_certain(change: Any) -> None:
    backend = byte_level_backend()
    change(backend)
    assert FastBackend(backend).longest is None
    assert FastBackend(sentencepiece_backend()).longest is None
