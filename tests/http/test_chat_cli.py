"""The terminal client against the real server: pipes, commands, Ctrl-C and clear errors."""

import io
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pyte
import pytest

from megainfer.commands.api_client import is_loopback
from megainfer.commands.chat_client import ChatClient
from megainfer.commands.conversation import converse, talk
from megainfer.commands.talk.markdown import Styler
from megainfer.commands.talk.printer import printable
from megainfer.commands.talk.wrap import Wrapper
from megainfer.errors import ConfigError, MegaInferError
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import Abort, Submit, TokenEvent
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    endless,
    speaking,
)

TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
(END,) = TOKENIZER.encode("<|im_end|>")


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER) as server:
        yield server


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    running.node.script = speaking(*TOKENIZER.encode("Hello 😀"), END)
    while not running.node.heard.empty():
        running.node.heard.get_nowait()
    return running


def typing(*messages: str) -> Callable[[], str | None]:
    """What is typed in a terminal, message by message."""
    left = iter(messages)
    return lambda: next(left, None)


def prompts(server: RunningServer, count: int) -> list[str]:
    submits = [server.node.expect(Submit) for _ in range(count)]
    return [TOKENIZER.decode(submit.prompt, skip_special_tokens=False) for submit in submits]


def test_each_line_of_a_pipe_is_a_message_of_one_conversation(server: RunningServer) -> None:
    out = io.StringIO()
    stdin = io.StringIO("Hi\n\nAnd?\n/reset\nAgain\n/exit\nnever\n")
    converse(ChatClient(server.url, system="Be brief.", max_tokens=50), stdin=stdin, stdout=out)
    assert out.getvalue() == "Hello 😀\n" * 3
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    end, user, assistant = "<|im_end|>\n", "<|im_start|>user\n", "<|im_start|>assistant\n"
    first = f"{system}{user}Hi{end}{assistant}"
    assert prompts(server, 3) == [
        first,
        f"{first}Hello 😀{end}{user}And?{end}{assistant}",
        f"{system}{user}Again{end}{assistant}",
    ]
    assert server.node.heard.empty()


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(server: RunningServer) -> None:
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if text == "x":
                raise KeyboardInterrupt
            return written

    (token,) = TOKENIZER.encode("x")
    server.node.script = endless(token)
    out = Interrupting()
    talk(ChatClient(f"{server.url}/v1/", model="org/alias"), typing("Hi", "More", "/exit"), out)
    assert "org/alias" in out.getvalue()
    assert out.getvalue().count("stopped") == 2
    heard = [server.node.heard.get(timeout=WAIT_SECONDS) for _ in range(4)]
    submits = [message for message in heard if isinstance(message, Submit)]
    aborts = [message for message in heard if isinstance(message, Abort)]
    assert {m.request_id for m in submits} == {m.request_id for m in aborts}
    second = TOKENIZER.decode(submits[1].prompt, skip_special_tokens=False)
    assert "<|im_start|>assistant\nx<|im_end|>" in second, "what was said so far is remembered"


def test_errors_are_shown_in_a_terminal_and_raised_in_a_pipe(server: RunningServer) -> None:
    out = io.StringIO()
    talk(ChatClient(server.url, max_tokens=5000), typing("Hi"), out)
    assert "maximum context length is 256" in " ".join(out.getvalue().split())
    with pytest.raises(MegaInferError, match="400: This model's maximum context length"):
        converse(ChatClient(server.url, max_tokens=5000), stdin=io.StringIO("Hi\n"), stdout=out)
    with pytest.raises(MegaInferError, match="404: the model 'gpt' isn't served"):
        converse(ChatClient(server.url, "gpt"), stdin=io.StringIO("Hi\n"), stdout=out)


def test_a_node_that_dies_in_the_middle_is_told_and_not_remembered() -> None:
    with RunningServer(TOKENIZER) as server:

        async def dying(submit: Submit) -> AsyncIterator[TokenEvent]:
            yield TokenEvent(submit.request_id, TOKENIZER.encode("Hello"))
            server.engine.fail("expert node 2 was killed")

        server.node.script = dying
        client = ChatClient(server.url)
        with pytest.raises(MegaInferError, match="expert node 2 was killed"):
            list(client.ask("Hi"))
        assert client.history == []
        client.close()


def test_thoughts_are_no_part_of_what_a_pipe_gets(capsys: pytest.CaptureFixture[str]) -> None:
    with RunningServer(TOKENIZER, syntax=SyntaxOptions(reasoning_parser="qwen3")) as server:
        for text, answer in (("<think>Hm.</think>Yes", "Yes\n"), ("<think>Hm.", "\n")):
            server.node.script = speaking(*TOKENIZER.encode(text), END)
            out = io.StringIO()
            client = ChatClient(server.url, thinking=False)
            converse(client, quick="Hi", stdout=out)
            assert out.getvalue() == answer
            assert ("while the model was thinking" in capsys.readouterr().err) == (answer == "\n")
            assert client.settings.fields() == {"chat_template_kwargs": {"enable_thinking": False}}


def test_an_address_needs_no_scheme(server: RunningServer) -> None:
    client = ChatClient(server.url.removeprefix("http://"))
    assert client.url == server.url
    client.close()


def test_no_server_says_how_to_get_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(MegaInferError, match=r"no server answers at .*`megainfer serve`.*--url"):
        converse(ChatClient(f"http://127.0.0.1:{port}"), stdin=io.StringIO("Hi\n"))


@pytest.mark.parametrize("url", ["", "http://[::1", "ftp://x", "http://x:99999", "http://a..b"])
def test_an_address_that_is_none_is_explained(url: str) -> None:
    with pytest.raises(MegaInferError):
        converse(ChatClient(url), stdin=io.StringIO("Hi\n"))


@pytest.mark.parametrize("key", ["secret\n", "secré", "secret€"])
def test_a_key_that_no_header_can_hold_is_explained_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="--api-key: a key must be visible ASCII") as failure:
        ChatClient("http://127.0.0.1:1", api_key=key)
    assert "secr" not in str(failure.value)


def test_proxies_are_for_other_machines_only() -> None:
    assert is_loopback("http://localhost:1")
    assert is_loopback("http://127.1.2.3")
    assert is_loopback("http://[::1]:8000")
    assert not is_loopback("http://example.org")


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\tb\r\n👩‍🚀\x07") == "a[2J\tb\n👩‍🚀"


# --- what is shown, however it is cut into pieces -------------------------------------------------

SHOWN = {
    "a **b** c": "a \x1b[0;1mb\x1b[0m c",
    "2 ** 3": "2 ** 3",
    "* one\n* two": "* one\n* two",
    "## T\nx": "\x1b[0;1mT\x1b[0m\nx",
    "#tag": "#tag",
    "`a * b` c": "\x1b[0;36ma * b\x1b[0m c",
    "```py\n# **x**\n```\ny": "\x1b[2m```py\x1b[0m\n\x1b[0;36m# **x**\n\x1b[2m```\x1b[0m\n\x1b[0my",
    "**never closed": "\x1b[0;1mnever closed",
}


@pytest.mark.parametrize("text", SHOWN)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_marks_become_styles(text: str, size: int) -> None:
    styler = Styler()
    pieces = [styler.push(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join([*pieces, styler.finish()]) == f"{SHOWN[text]}\x1b[0m"


@pytest.mark.parametrize("columns", [3, 7, 11, 80])
@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog.",
        "one two\nthree  four\n\nanextremelylongwordthatfitsnowhere and on",
        "人生は短い、芸術は長い。 and on",
        "a\tb \x1b[1mbold words\x1b[0m c",
    ],
)
def test_lines_end_between_words(text: str, columns: int) -> None:
    wrapper, screen = Wrapper(columns), pyte.Screen(columns, 200)
    stream = pyte.Stream(screen)
    for char in wrapper.push(text).replace("\n", "\r\n"):
        stream.feed(char)
    shown = " ".join(line.strip() for line in screen.display).split()
    words = re.sub(r"\x1b\[\d*m", "", text).split()
    if all(len(word) < columns for word in words) and text.isascii():
        assert shown == words
    assert "".join(shown).replace(" ", "") == "".join(words).replace(" ", "")
