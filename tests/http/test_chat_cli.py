"""The terminal client against the real server: pipes, commands, Ctrl-C and clear errors."""

import io
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from megainfer.commands.api_client import is_loopback
from megainfer.commands.chat_client import ChatClient
from megainfer.commands.conversation import converse, printable
from megainfer.errors import ConfigError, MegaInferError
from megainfer.messages import Abort, Submit, TokenEvent
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, *messages: str | type[BaseException]) -> None:
    """Have input() return these, or raise them; the end of input comes after the last."""
    left = iter(messages)

    def typed(_: str) -> str:
        message = next(left, EOFError)
        if isinstance(message, str):
            return message
        raise message

    monkeypatch.setattr("builtins.input", typed)


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


def test_a_conversation_in_a_terminal(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing(monkeypatch, "Hi", "/what", "/reset", "", KeyboardInterrupt)
    out = io.StringIO()
    converse(ChatClient(f"{server.url}/v1/", model="org/alias"), stdin=Terminal(), stdout=out)
    text = out.getvalue()
    assert "org/alias" in text
    assert "Hello 😀\n" in text
    assert "There is no command '/what'" in text
    assert "starts anew" in text
    assert len(prompts(server, 1)) == 1


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if text == "x":
                raise KeyboardInterrupt
            return written

    (token,) = TOKENIZER.encode("x")
    server.node.script = endless(token)
    typing(monkeypatch, "Hi", "More", "/exit")
    out = Interrupting()
    converse(ChatClient(server.url), stdin=Terminal(), stdout=out)
    assert out.getvalue().count("stopped") == 2
    heard = [server.node.heard.get(timeout=WAIT_SECONDS) for _ in range(4)]
    submits = [message for message in heard if isinstance(message, Submit)]
    aborts = [message for message in heard if isinstance(message, Abort)]
    assert {m.request_id for m in submits} == {m.request_id for m in aborts}
    second = TOKENIZER.decode(submits[1].prompt, skip_special_tokens=False)
    assert "<|im_start|>assistant\nx<|im_end|>" in second, "what was said so far is remembered"


def test_errors_are_shown_in_a_terminal_and_raised_in_a_pipe(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing(monkeypatch, "Hi")
    out = io.StringIO()
    converse(ChatClient(server.url, max_tokens=5000), stdin=Terminal(), stdout=out)
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


def test_an_error_after_half_an_answer_begins_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RunningServer(TOKENIZER) as server:

        class Out(io.StringIO):
            def write(self, text: str) -> int:
                if text == "x":
                    server.call(server.engine.fail, "expert node 2 was killed")
                return super().write(text)

        server.node.script = endless(TOKENIZER.encode("x")[0])
        typing(monkeypatch, "Hi")
        out = Out()
        converse(ChatClient(server.url), stdin=Terminal(), stdout=out)
    assert "Error: expert node 2 was killed" in out.getvalue().splitlines()


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
