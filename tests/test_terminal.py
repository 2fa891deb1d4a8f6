"""What a person sees while an instance starts: nothing is lost of it, and nothing left behind."""

import logging
from io import StringIO
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from rich.console import Console

from megainfer.config import EngineConfig
from megainfer.plan import Plan, make_plan
from megainfer.terminal import TerminalObserver

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
URL = "http://[fe80::1]:8000"


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    folder = write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))
    return make_plan(EngineConfig(micro_batches=1), Path(folder))


def observer_of(plan: Plan, is_terminal: bool) -> tuple[TerminalObserver, StringIO]:
    shown = StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=200, highlight=False)
    return TerminalObserver(console, plan, URL, "[my] model"), shown


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
    observer.ready(2)
    text = shown.getvalue()
    assert f"at {URL}: [my] model, 1 attention and 1 expert process, 2 micro-batches" in text
    assert f"chat --url {URL}\n" in text
    assert f"curl {URL}/v1/chat/completions" in text
