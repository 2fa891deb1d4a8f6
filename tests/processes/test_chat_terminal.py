"""`megainfer chat` as its user has it: a program in a terminal, before a server with a script."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import Abort, FinishReason, Submit, TokenEvent
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
from tests.support.terminal import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    ENTER,
    TAB,
    UP,
    Terminal,
    megainfer_in_terminal,
    pasted,
)

TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
(END,) = TOKENIZER.encode("<|im_end|>")
PROMPT = "you ▸"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER, syntax=SyntaxOptions(reasoning_parser="qwen3")) as server:
        yield server


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    says(running, "Hello you")
    while not running.node.heard.empty():
        running.node.heard.get_nowait()
    return running


@pytest.fixture
def chat(server: RunningServer) -> Iterator[Terminal]:
    with megainfer_in_terminal("chat", "--url", server.url) as terminal:
        terminal.until(PROMPT)
        yield terminal


def says(server: RunningServer, text: str, finish: FinishReason = FinishReason.STOP) -> None:
    server.node.script = speaking(*TOKENIZER.encode(text), END, finish=finish)


def asked(server: RunningServer) -> tuple[str, Submit]:
    """The prompt of the next request, and the request."""
    submit = server.node.expect(Submit)
    return TOKENIZER.decode(submit.prompt, skip_special_tokens=False), submit


def next_prompt(terminal: Terminal, number: int) -> None:
    """Until the prompt stands there for the so-many-th time, with nothing typed."""
    terminal.until(lambda seen: seen.text.count(PROMPT) == number)


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def test_an_answer_comes_with_its_figures_and_the_next_prompt(
    chat: Terminal, server: RunningServer
) -> None:
    assert "tiny at http://127.0.0.1" in chat.lines[0]
    assert "a message, or /help" in chat.text
    chat.type(f"Hi{ENTER}")
    next_prompt(chat, 2)
    assert "Hello you" in chat.lines
    assert re.search(r"\d+ tokens · first after \d+\.\d\d s · \d+\.\d tokens/s", chat.text)
    assert "…" not in chat.text
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_thoughts_are_dimmed_and_stand_before_the_answer(
    chat: Terminal, server: RunningServer
) -> None:
    says(server, "<think>Hm, a dog.</think>\n\nHello you")
    chat.type(f"Hi{ENTER}")
    next_prompt(chat, 2)
    thought = chat.lines.index("Hm, a dog.")
    assert chat.lines[thought + 1 : thought + 3] == ["", "Hello you"]
    assert "\x1b[2mH" in chat.raw
    assert "a dog.\x1b[0m" in chat.raw
    asked(server)
    says(server, "Yes")
    chat.type(f"More{ENTER}")
    next_prompt(chat, 3)
    assert user("More") in (prompt := asked(server)[0])
    assert "Hm, a dog" not in prompt


def test_a_model_that_only_thinks_doesn_t_show_an_empty_line(
    chat: Terminal, server: RunningServer
) -> None:
    says(server, "<think>Hm, a dog.", FinishReason.LENGTH)
    chat.type(f"Hi{ENTER}")
    next_prompt(chat, 2)
    assert "Hm, a dog." in chat.lines
    assert "cut off at the token limit" in chat.text


@pytest.mark.parametrize("form", [pasted, str], ids=["told", "untold"])
def test_what_is_pasted_is_one_message(chat: Terminal, server: RunningServer, form: type) -> None:
    chat.type(form("one\rtwo\r\rthree"))
    chat.until("three")
    chat.type(ENTER)
    next_prompt(chat, 2)
    assert user("one\ntwo\n\nthree") in asked(server)[0]
    assert server.node.heard.empty()


def test_several_lines_can_be_typed(chat: Terminal, server: RunningServer) -> None:
    chat.type(f"one{ALT_ENTER}")
    chat.until(lambda seen: seen.lines[-1].strip() == "▸")
    chat.type("two\nthree")  # Ctrl-J
    chat.until("three")
    chat.type(ENTER)
    next_prompt(chat, 2)
    assert user("one\ntwo\nthree") in asked(server)[0]


def test_what_is_typed_while_an_answer_comes_waits_for_the_prompt(
    chat: Terminal, server: RunningServer
) -> None:
    server.node.script = endless(TOKENIZER.encode("x")[0])
    chat.type(f"Hi{ENTER}")
    chat.until(lambda seen: "x" in seen.lines)
    asked(server)
    says(server, "Hello you")
    chat.type("later")
    chat.interrupt()
    chat.until(lambda seen: seen.lines[-1] == f"{PROMPT} later")
    server.node.expect(Abort)
    assert any(line.startswith("stopped · 1 token") for line in chat.lines)
    assert "xlater" not in chat.text
    chat.type(ENTER)
    next_prompt(chat, 3)
    prompt, _ = asked(server)
    assert "<|im_start|>assistant\nx<|im_end|>" in prompt, "what was said so far is remembered"
    assert user("later") in prompt


def test_ctrl_c_drops_the_line_and_then_leaves(chat: Terminal, server: RunningServer) -> None:
    chat.type("nonsense")
    chat.until("nonsense")
    chat.type(CTRL_C)
    chat.until("a message, or /help")
    chat.type(CTRL_C)
    assert chat.end() == 0
    assert server.node.heard.empty()


def test_commands_change_what_is_asked(chat: Terminal, server: RunningServer) -> None:
    number = 1

    def do(line: str, told: str = "") -> None:
        nonlocal number
        chat.type(f"{line}{ENTER}")
        number += 1
        next_prompt(chat, number)
        assert told in chat.text

    do("/help", "/regen")
    for name in ("/system", "/set", "/reset", "/quit", "Alt-Enter"):
        assert name in chat.text
    do("/system Be brief.", "It is set.")
    do("/system", "The system prompt: Be brief.")
    do("/set temperature 0.25")
    do("/set max_tokens=7")
    do("/set", "0.25")
    do("/set temperature warm", "temperature must be a number, or default, not 'warm'")
    do("/set warmth 1", "there is no setting 'warmth'")
    do("/sett", "There is no command /sett; did you mean /set?")
    do("Hi")
    prompt, submit = asked(server)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert (submit.temperature, submit.max_tokens) == (0.25, 7)
    do("/regen")
    assert asked(server)[0] == prompt
    do("/set temperature default")
    do("And?")
    prompt, submit = asked(server)
    assert prompt.count("<|im_start|>user") == 2
    assert submit.temperature == 1
    do("/reset", "starts anew")
    do("/regen", "nothing to answer again")
    do("Hi")
    assert asked(server)[0].count("<|im_start|>user") == 1
    chat.type(f"/quit{ENTER}")
    assert chat.end() == 0


def test_commands_are_completed_and_earlier_messages_come_back(
    chat: Terminal, server: RunningServer
) -> None:
    chat.type(f"/qu{TAB}")
    chat.until("/quit")
    chat.type(CTRL_C)
    chat.until("a message, or /help")
    chat.type(f"Hi there{ENTER}")
    next_prompt(chat, 2)
    asked(server)
    chat.type(UP)
    chat.until(lambda seen: seen.text.count("Hi there") == 2)
    chat.type(ENTER)
    next_prompt(chat, 3)
    assert asked(server)[0].count(user("Hi there")) == 2


def test_an_error_is_told_and_the_conversation_goes_on(
    chat: Terminal, server: RunningServer
) -> None:
    chat.type(f"/set max_tokens 5000{ENTER}")
    next_prompt(chat, 2)
    chat.type(f"Hi{ENTER}")
    next_prompt(chat, 3)
    (error,) = [line for line in chat.lines if line.startswith("Error: ")]
    assert "maximum context length is 256" in chat.text
    assert chat.style_of(error).fg == "red"
    chat.type(f"/set max_tokens default{ENTER}")
    next_prompt(chat, 4)
    chat.type(f"Hi{ENTER}")
    next_prompt(chat, 5)
    assert "Hello you" in chat.lines


def test_words_stay_whole_and_marks_become_styles(server: RunningServer) -> None:
    text = "# A Title\nThe **quick brown** fox says `jump(2 ** 3)` over the lazy dog today.\n"
    code = "```py\nopen = '# no heading, **nor bold**, however long this line of code may be'\n```"
    says(server, text + code + "\n* an item")
    with megainfer_in_terminal("chat", "--url", server.url, columns=40) as chat:
        chat.until(PROMPT)
        chat.type(f"Hi{ENTER}")
        next_prompt(chat, 2)
        first = chat.lines.index("A Title")
        assert chat.lines[first : first + 3] == [
            "A Title",
            "The quick brown fox says jump(2 ** 3)",
            "over the lazy dog today.",
        ]
        assert "open = '# no heading, **nor bold**, howe" in chat.lines
        assert "* an item" in chat.lines
        for styled in ("A Title", "quick", "brown"):
            assert chat.style_of(styled).bold
        for plain in ("fox", "over", "* an item"):
            assert not chat.style_of(plain).bold
            assert chat.style_of(plain).fg == "default"
        assert chat.style_of("jump").fg == chat.style_of("open").fg == "cyan"


def test_a_text_to_continue_is_talked_about_in_the_same_way(server: RunningServer) -> None:
    with megainfer_in_terminal("complete", "--url", server.url) as terminal:
        terminal.until(PROMPT)
        terminal.type(f"Once{ENTER}")
        next_prompt(terminal, 2)
        assert asked(server)[0] == "Once"
        terminal.type(f"/regen{ENTER}")
        next_prompt(terminal, 3)
        assert asked(server)[0] == "Once"
        terminal.type(f"/system x{ENTER}")
        next_prompt(terminal, 4)
        assert "has no system prompt" in terminal.text


def test_a_single_question_in_a_terminal_shows_thoughts_too(server: RunningServer) -> None:
    says(server, "<think>Hm.</think>Hello you")
    with megainfer_in_terminal("chat", "--url", server.url, "-q", "Hi") as terminal:
        assert terminal.end() == 0
        assert [line for line in terminal.lines if line] == ["Hm.", "Hello you"]


async def _dying(submit: Submit) -> AsyncIterator[TokenEvent]:
    yield TokenEvent(submit.request_id, TOKENIZER.encode("Half"))


def test_a_connection_that_breaks_is_told_on_a_line_of_its_own() -> None:
    with RunningServer(TOKENIZER) as server:
        server.node.script = _dying
        with megainfer_in_terminal("chat", "--url", server.url) as chat:
            chat.until(PROMPT)
            chat.type(f"Hi{ENTER}")
            chat.until("Half")
            server.call(server.engine.fail, "expert node 2 was killed")
            next_prompt(chat, 2)
            assert "Error: expert node 2 was killed" in chat.lines


UNHEARD = """
import signal, socket, threading, time
from contextlib import nullcontext
from pathlib import Path
from megainfer.commands.talk.editor import interrupts_are_heard

begun, sent = [], []
ours, theirs = socket.socketpair()
main = Path(f"/proc/self/task/{threading.main_thread().native_id}/stat")

def elsewhere():
    asleep = 0
    while not begun or asleep < 20:  # it has had its turns, and waits for nobody but the socket
        asleep = asleep + 1 if main.read_text().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.005)  # the interpreter is the main thread's meanwhile
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # nothing wakes the main thread
    threading.Event().wait(LONGEST)
    sent.append(True)
    theirs.send(b"x")

try:
    with AROUND:
        threading.Thread(target=elsewhere, daemon=True).start()
        begun.append(True)
        ours.recv(1)
        time.sleep(LONGEST)  # where the byte came first, for the interrupt to be raised in here
except KeyboardInterrupt:
    print("late" if sent else "at once")
"""


@pytest.mark.parametrize(
    ("around", "longest", "heard"),
    [("interrupts_are_heard()", 60, "at once"), ("nullcontext()", 1, "late")],
)
def test_an_interrupt_is_heard_though_nothing_comes(around: str, longest: int, heard: str) -> None:
    script = UNHEARD.replace("AROUND", around).replace("LONGEST", str(longest))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert run.stdout.strip() == heard, run.stderr
