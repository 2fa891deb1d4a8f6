"""What a person sees while an instance starts: nothing is lost of it, and nothing left behind."""

import logging
import shlex
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megainfer.config import EngineConfig
from megainfer.console.terminal import TerminalObserver
from megainfer.frontend.serving_options import ServingOptions
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    speaking,
)
from tests.support.served import run_cli

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
(END,) = TOKENIZER.encode("<|im_end|>")
URL = "http://[fe80::1]:8000"


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    folder = write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))
    return make_plan(EngineConfig(micro_batches=1), Path(folder), read_machine())


def observer_of(
    plan: Plan, is_terminal: bool, url: str = URL, asks_for_key: bool = False
) -> tuple[TerminalObserver, StringIO]:
    shown = StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=200, highlight=False)
    return TerminalObserver(console, plan, url, "[my] model", asks_for_key), shown


@pytest.mark.parametrize("error", [None, "expert node 0 died: [/sorry]"])
def test_an_end_while_loading_gives_the_cursor_back(plan, error, caplog):
    observer, shown = observer_of(plan, is_terminal=True)
    observer.stage("loading weights")
    observer.loading("attention node 0", 10, 100)
    assert shown.getvalue().count(HIDE_CURSOR) == 1
    with caplog.at_level(logging.INFO, "megainfer"):
        observer.ended(error)
    assert shown.getvalue().count(SHOW_CURSOR) == 1
    assert "loaded" not in shown.getvalue()
    assert caplog.messages == ([error] if error else [])


def test_ready_says_where_as_it_is_written(plan):
    observer, shown = observer_of(plan, is_terminal=False)
    observer.stage("loading weights")
    observer.ready(2, {"libraries": 2.06, "weights": 0.5})
    text = shown.getvalue()
    assert "Ready in 2.6 s (libraries 2.1 s, weights 0.5 s) at http" in text
    assert f"at {URL}: [my] model, 1 attention and 1 expert process, 2 micro-batches" in text
    assert f"chat --url {URL}\n" in text
    assert f"curl {URL}/v1/chat/completions" in text
    assert "KEY" not in text


@pytest.mark.parametrize("program", ["chat", "curl"])
def test_the_proposed_commands_work_with_a_key(plan, program):
    """As they are printed, with the key in KEY's place; a wrong one is refused."""
    options = ServingOptions(api_keys=("the-key",))
    with RunningServer(TOKENIZER, options=options) as server:
        server.node.script = speaking(*TOKENIZER.encode("Because"), END)
        observer, shown = observer_of(plan, False, server.url, options.asks_for_key)
        observer.ready(1, {})
        (line,) = [line for line in shown.getvalue().splitlines() if program in line.split()]
        for key in ("the-key", "another"):
            answer = run(shlex.split(line.replace("KEY", key)))
            assert ("Because" in answer) == (key == "the-key"), answer
            assert ("the key that was sent isn't one of this server's" in answer) == (
                key == "another"
            )


def run(command: list[str]) -> str:
    """All that it prints; our own program as a module, so that this checkout is what runs."""
    program, *words = command
    if program != "curl":
        done = run_cli(*words, "-q", "Why?", timeout=WAIT_SECONDS * 3)
        return done.stdout + done.stderr
    return subprocess.run(
        ["curl", "--noproxy", "*", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=WAIT_SECONDS * 3,
    ).stdout
