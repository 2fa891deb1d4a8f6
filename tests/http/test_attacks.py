"""Every attack of the list against the server: nobody else is disturbed, and nothing is left."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from tests.support.attacking import Attacker, Honest, attack_beside
from tests.support.attacks import ATTACKS, Attack
from tests.support.callbacks import Callbacks, watched_callbacks
from tests.support.scripted_server import WAIT_SECONDS, RunningServer, write_tokenizer

HOSTILE, HONEST = "hostile-key", "honest-key"
MANY_TOKENS = 100
LONGEST_SECONDS = 0.1
"""Of CPU time of the event loop's thread, in one callback."""


async def as_asked(submit: Submit) -> AsyncIterator[TokenEvent]:
    """A script: as many tokens as may be; those who ask for very many get one, and wait."""
    for position in range(submit.max_tokens):
        if position and submit.max_tokens > MANY_TOKENS:
            return
        last = position == submit.max_tokens - 1
        yield TokenEvent(submit.request_id, [70], FinishReason.LENGTH if last else None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    options = ServingOptions(api_keys=(HOSTILE, HONEST))
    tokenizer = Tokenizer.load(folder)
    with RunningServer(tokenizer, folder=folder, options=options) as running:
        running.node.script = as_asked
        yield running


@pytest.fixture(scope="module")
def callbacks(server: RunningServer) -> Iterator[Callbacks]:
    with watched_callbacks(server.thread) as seen:
        yield seen


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_an_attack_disturbs_nobody(
    attack: Attack, server: RunningServer, callbacks: Callbacks
) -> None:
    callbacks.label = attack.name
    attacker, honest = Attacker(server.url, HOSTILE), Honest(server.url, HONEST)
    seen = asyncio.run(attack_beside(attacker, attack, honest))
    assert seen.problems(attack) == []
    deadline = time.monotonic() + WAIT_SECONDS
    while server.engine.outstanding or server.instance.occupancy.in_flight:
        assert time.monotonic() < deadline, "it is still being served"
        time.sleep(0.01)
    seconds, what = callbacks.by_label.get(attack.name, (0.0, ""))
    assert seconds < LONGEST_SECONDS, f"a callback took {seconds:.3f} s of CPU: {what}"
