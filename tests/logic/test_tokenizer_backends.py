"""Tokenizers other than tokenizer.json: Mistral's and tiktoken's, against their own libraries."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from megainfer.errors import ModelError, RequestError
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.structured import grammar as grammars
from megainfer.structured.compiler import GrammarCompiler
from megainfer.text.chat import Chat
from megainfer.text.detokenizer import IncrementalDetokenizer
from megainfer.text.token_text import TokenTexts
from megainfer.text.tokenizer import Tokenizer, load_tokenizer
from megainfer.text.tokenizers.tiktoken_model import MOONSHOT
from server.openai.syntax import AnswerSyntax
from server.parsing.notations import NOTATIONS
from tests.support.rendered import rendered_by
from tests.support.scripted_server import CHAT_TEMPLATE, SENTENCES, RunningServer, speaking

MERGED = [b"th", b"the", b" the", b" t", "人".encode(), "😀".encode()[:2], b"He", b"llo", b"12"]
CONTROL = [
    *("unk", "s", "/s", "INST", "/INST", "AVAILABLE_TOOLS", "/AVAILABLE_TOOLS", "TOOL_RESULTS"),
    *("/TOOL_RESULTS", "TOOL_CALLS", "IMG", "pad", "IMG_BREAK", "IMG_END", "PREFIX", "MIDDLE"),
    *("SUFFIX", "SYSTEM_PROMPT", "/SYSTEM_PROMPT", "TOOL_CONTENT", "ARGS", "CALL_ID", "THINK"),
    "/THINK",
]
ANGLED = ("unk", "s", "/s", "pad")
END = 2
SPECIAL = 30  # six of them without a name
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello 12?"}]


def byte_vocabulary() -> list[bytes]:
    return [*(bytes([byte]) for byte in range(256)), *MERGED]


def write_tekken(folder: Path, version: str = "v11") -> Path:
    """A small tekken.json."""
    names = [f"<{name}>" if name in ANGLED else f"[{name}]" for name in CONTROL]
    tokens = byte_vocabulary()
    content = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + SPECIAL,
            "default_num_special_tokens": SPECIAL,
            "version": version,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def write_tiktoken(folder: Path, program: str = "tokenization_kimi") -> Path:
    """A small tokenizer like Kimi-K2's."""
    tokens = byte_vocabulary()
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    first = len(tokens)
    named = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_start|>"]
    config = {
        "added_tokens_decoder": {
            str(first + place): {"content": text, "special": True}
            for place, text in enumerate(named)
        },
        "auto_map": {"AutoTokenizer": [f"{program}.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"vocab_size": first + 20}))
    return folder


@pytest.fixture(scope="module")
def tekken_folder(tmp_path_factory) -> Path:
    return write_tekken(tmp_path_factory.mktemp("tekken"))


@pytest.fixture(scope="module")
def tekken(tekken_folder: Path) -> Tokenizer:
    return Tokenizer.load(tekken_folder)


@pytest.fixture(scope="module")
def mistral(tekken_folder: Path) -> MistralTokenizer:
    return MistralTokenizer.from_file(tekken_folder / "tekken.json")


@pytest.fixture(scope="module")
def kimi_folder(tmp_path_factory) -> Path:
    return write_tiktoken(tmp_path_factory.mktemp("kimi"))


@pytest.fixture(scope="module")
def kimi(kimi_folder: Path) -> Tokenizer:
    return Tokenizer.load(kimi_folder)


TEXTS = [*SENTENCES, "", " x", "the the 123", "<s>[INST]", "<|im_end|>", "\ud800"]


# --- Mistral's ------------------------------------------------------------------------------------


def test_tekken_texts_are_those_of_the_library(tekken, mistral) -> None:
    theirs = mistral.instruct_tokenizer.tokenizer
    for text in TEXTS[:-1]:
        ids = tekken.encode(text)
        assert ids == theirs.encode(text, bos=True, eos=False)
        assert tekken.encode(text, add_special_tokens=False) == ids[1:]
        assert tekken.decode(ids) == theirs.decode(ids, SpecialTokenPolicy.IGNORE) == text
        kept = theirs.decode(ids, SpecialTokenPolicy.KEEP)
        assert tekken.decode(ids, skip_special_tokens=False) == kept
    assert tekken.vocab_size == theirs.n_words
    assert (tekken.token_id("[INST]"), tekken.token_id(" the")) == (3, 288)
    assert tekken.piece(10**6) is None


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_chats_are_those_of_the_library(tmp_path: Path, version: str) -> None:
    write_tekken(tmp_path, version)
    ours = Tokenizer.load(tmp_path)
    library = MistralTokenizer.from_file(tmp_path / "tekken.json")
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "abcdefgh1"}]},
        {"role": "tool", "content": "2", "tool_call_id": "abcdefgh1"},
    ]
    for said, tools in ((QUESTION, None), (messages, [TOOL])):
        request = ChatCompletionRequest.from_openai(messages=said, tools=tools)
        expected = library.encode_chat_completion(request)
        encoded = ours.encode_chat(Chat(said, tools))
        text = library.decode(expected.tokens, SpecialTokenPolicy.KEEP)
        assert (encoded.ids, encoded.text) == (expected.tokens, text)


def test_ids_of_calls_become_mistrals(tekken) -> None:
    def chat(name: str) -> Chat:
        call = {"id": name, "type": "function", "function": {"name": "add", "arguments": {}}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        answer = {"role": "tool", "content": "2", "tool_call_id": name}
        return Chat([*QUESTION, said, answer], [TOOL])

    long = tekken.encode_chat(chat("call_0123456789abcdef")).ids
    assert long == tekken.encode_chat(chat("call_0123456789abcdef")).ids
    assert long != tekken.encode_chat(chat("call_0123456789abcdee")).ids


def test_continuing_the_last_message(tekken) -> None:
    said = [*QUESTION, {"role": "assistant", "content": "the the"}]
    ids = tekken.encode_chat(Chat(said, continues_last=True, opens_an_answer=False)).ids
    assert tekken.decode(ids).endswith("the the")
    assert ids[-1] == tekken.encode(" the")[-1]


def test_chats_that_the_library_refuses(tekken) -> None:
    with pytest.raises(RequestError, match="mistral-common refused these messages"):
        tekken.encode_chat(Chat([{"role": "assistant", "content": "x"}] * 2))
    with pytest.raises(RequestError, match="no chat template, so enable_thinking"):
        tekken.encode_chat(Chat(QUESTION, variables={"enable_thinking": False}))


def test_a_wrong_tekken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text('{"config": {"version": "v99"}}')
    with pytest.raises(ModelError, match=r"tekken\.json isn't a tokenizer of Mistral's"):
        load_tokenizer(tmp_path)


def test_mistrals_notation_of_calls_is_seen_without_a_template(tekken) -> None:
    assert AnswerSyntax.of(SyntaxOptions(), tekken).calls is NOTATIONS["mistral_v11"]


# --- tiktoken's -----------------------------------------------------------------------------------


def test_tiktoken_texts_are_those_of_the_library(kimi: Tokenizer) -> None:
    ranks = {token: rank for rank, token in enumerate(byte_vocabulary())}
    first = len(ranks)
    special = {"[BOS]": first, "[EOS]": first + 1, "<|im_end|>": first + 2}
    special["<|im_start|>"] = first + 3
    theirs = tiktoken.Encoding("k", pat_str=MOONSHOT, mergeable_ranks=ranks, special_tokens=special)
    for text in TEXTS[:-1]:
        ids = kimi.encode(text)
        assert ids == theirs.encode(text, allowed_special="all")
        assert kimi.decode(ids, skip_special_tokens=False) == theirs.decode(ids) == text
    assert kimi.encode("<|im_end|>") == [first + 2]
    assert kimi.decode([first + 2]) == ""
    assert kimi.piece(first + 19) == f"<|reserved_token_{first + 19}|>"
    assert kimi.vocab_size == first + 20


def test_texts_on_which_the_library_gives_up_are_cut(kimi: Tokenizer) -> None:
    for text in (" " * 1_000_000 + "the", "the " * 120_000, "x" * 25_001 + " the"):
        ids = kimi.encode(text, add_special_tokens=False)
        assert kimi.decode(ids) == text
    space, the = (kimi.encode(text, add_special_tokens=False) for text in (" ", " the"))
    assert kimi.encode(" " * 25_001 + "the", add_special_tokens=False) == space * 25_000 + the


def test_a_chat_through_its_template(kimi: Tokenizer) -> None:
    encoded = kimi.encode_chat(Chat(QUESTION), rendered_by(kimi, QUESTION))
    assert encoded.text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert kimi.decode(encoded.ids, skip_special_tokens=False) == encoded.text
    assert encoded.ids[0] == kimi.token_id("<|im_start|>")


def test_a_program_that_is_not_known_is_not_run(tmp_path: Path) -> None:
    write_tiktoken(tmp_path, "tokenization_other")
    with pytest.raises(ModelError, match=r"'tokenization_other\.TikTok.*which isn't run; known"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("YQ== 0\nYg== 2\n", "its 2 ranks aren't 0 to 1"),
        ("", "ranks aren't"),
        ("%%% 0\n", "isn't a list of tokens"),
        ("YQ== x\n", "isn't a list of tokens"),
        ("YQ==\n", "isn't a list of tokens"),
    ],
)
def test_a_wrong_tiktoken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    write_tiktoken(tmp_path)
    (tmp_path / "tiktoken.model").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path)


def test_added_tokens_must_be_beyond_the_others(tmp_path: Path) -> None:
    config = json.loads((write_tiktoken(tmp_path) / "tokenizer_config.json").read_text())
    for wrong in ({"5": {"content": "x"}}, {"x": {}}, [1]):
        changed = {**config, "added_tokens_decoder": wrong}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match="added_tokens_decoder"):
            load_tokenizer(tmp_path)


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    token, entry = list(config["added_tokens_decoder"].items())[-1]
    config["added_tokens_decoder"][token] = {**entry, "special": False}
    path.write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("a[EOS]<|im_start|>")
    assert (tokenizer.decode(ids), ids[-1]) == ("a<|im_start|>", int(token))
    assert not tokenizer.is_silent(int(token), skip_special_tokens=True)


# --- both -----------------------------------------------------------------------------------------


@given(text=st.text(max_size=30))
@settings(max_examples=60)
def test_pieces_add_up(kimi: Tokenizer, tekken: Tokenizer, text: str) -> None:
    for tokenizer in (kimi, tekken):
        ids = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = IncrementalDetokenizer(tokenizer)
        parts = [*(detokenizer.push(token) for token in ids), detokenizer.flush()]
        assert "".join(parts) == tokenizer.decode(ids) == text.encode(errors="replace").decode()
        assert all("\ufffd" not in part for part in parts) or "\ufffd" in text
        assert b"".join(map(TokenTexts(tokenizer).bytes_of, ids)).decode() == "".join(parts)


@given(ids=st.lists(st.integers(0, 320), max_size=30), skip=st.booleans())
@settings(max_examples=100)
def test_any_tokens_give_the_text_of_all_of_them(kimi, tekken, ids: list[int], skip: bool) -> None:
    for tokenizer in (kimi, tekken):
        detokenizer = IncrementalDetokenizer(tokenizer, skip)
        parts = [*(detokenizer.push(token) for token in ids), detokenizer.flush()]
        assert "".join(parts) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("which", ["tekken_folder", "kimi_folder"])
def test_structured_output(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    tokenizer = Tokenizer.load(folder)
    end = tokenizer.token_id("</s>" if which == "tekken_folder" else "[EOS]")
    compiler = GrammarCompiler(folder, tokenizer.vocab_size, [end], 2**24)

    def allowed(text: str) -> set[int]:
        matcher = compiler.compile(grammars.regex(r"(the|人\[INST\]) 12", "regex"))
        matcher.take(tokenizer.encode(text, add_special_tokens=False))
        mask = matcher.mask()
        return {i for i in range(tokenizer.vocab_size) if mask[i // 8] >> (i % 8) & 1}

    the = {tokenizer.token_id(text) for text in ("t", "th", "the")}
    han = {tokenizer.token_id("人"), tokenizer.vocabulary().ids["人".encode()[:1]]}
    assert allowed("") == the | han
    assert allowed("th") == {tokenizer.token_id("e")}
    assert allowed("人") == {tokenizer.token_id("[")}  # as text: the special token isn't meant
    assert allowed("the 12") == {end}


@pytest.mark.parametrize("which", ["tekken", "kimi"])
def test_a_chat_with_a_server(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(which)
    with (
        RunningServer(tokenizer) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        said = tokenizer.encode("Hello 😀 the end", add_special_tokens=False)
        server.node.script = speaking(*said, END)
        chunks = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "Hello 😀 the end"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("write", "extra"), [(write_tekken, "mistral"), (write_tiktoken, "tiktoken")]
)
def test_a_missing_library_says_what_to_install(
    tmp_path: Path, write: Callable[[Path], Path], extra: str
) -> None:
    write(tmp_path)
    code = (
        "import sys; sys.modules['mistral_common'] = sys.modules['tiktoken'] = None\n"
        "from pathlib import Path; from megainfer.errors import ModelError\n"
        "from megainfer.text.tokenizer import load_tokenizer\n"
        f"try: load_tokenizer(Path({str(tmp_path)!r}))\n"
        "except ModelError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert f"pip install 'megainfer[{extra}]'" in result.stdout


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "qwen.tiktoken"])
def test_a_tokenizer_of_another_kind_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"{name} is no kind of tokenizer.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_grammars_do_not_know_is_named(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    made.decoder = tokenizers.decoders.Fuse()
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RequestError, match=r"can't be had with this model's tokenizer: .*decoder"):
        GrammarCompiler(tmp_path, 3, [1], 2**24)
