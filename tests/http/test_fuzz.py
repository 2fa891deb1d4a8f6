"""Requests made up from the fields' types, and damaged: none is answered by a failure, none hangs,
none holds the event loop, and nothing is left of them."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import httpx
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.from_child import Release, Renew, Resize
from megainfer.messages.requests import FinishReason, Submit, TokenEvent, TokenLogprobs
from megainfer.messages.to_child import Resized
from megainfer.text.tokenizer import Tokenizer
from server.operate.changes import Changes
from tests.support.callbacks import watched_callbacks
from tests.support.fuzzing.requests import Maker
from tests.support.fuzzing.shooting import Tally, shoot
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    write_tokenizer,
)

KEYS, ADMIN_KEYS = ("one-clients-key", "anothers-key"), ("an-operators-key",)
QUICK, MANY = 400, 5000
ALL = int(os.environ.get("MEGAINFER_FUZZ", MANY))
"""How many of the slow test."""
SEED = int(os.environ.get("MEGAINFER_FUZZ_SEED", 2))
END = 2
LONGEST_SECONDS = 0.1
GROWTH_BYTES = 48 * 2**20
SPOKEN = (
    "one. two.",
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    "<think>hm</think> so 😀",
    '<tool_call>{"name": "f", "arguments": {"a"',
    "```json\n[1, {}]\n```",
    "",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Whose node says something else each time, log-probabilities with it."""
    template = CHAT_TEMPLATE + "{% if tools %}{{ tools }}<tool_call>{% endif %}"
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    write_tokenizer(folder, byte_level_backend(), chat_template=template)
    tokenizer, random = Tokenizer.load(folder), Random(SEED)
    texts = [tokenizer.encode(text, False) for text in SPOKEN]

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        wants = submit.prompt_logprobs is not None
        before = [scored(token) for token in submit.prompt[1:]]
        tokens = [*random.choice(texts), END][: submit.max_tokens]
        for position, token in enumerate(tokens):
            last = position + 1 == len(tokens)
            reason = FinishReason.STOP if token == END else FinishReason.LENGTH
            yield TokenEvent(
                submit.request_id,
                [token],
                reason if last else None,
                logprobs=None if submit.logprobs is None else [scored(token)],
                prompt_logprobs=before if wants and not position else None,
            )

    options = ServingOptions(api_keys=KEYS, admin_keys=ADMIN_KEYS)
    defaults = GenerationDefaults((END,))
    with RunningServer(tokenizer, defaults, folder=folder, options=options) as running:
        running.node.script = script
        running.instance.changes = _changes(running)
        start_helpers(running.url)
        yield running


def start_helpers(url: str) -> None:
    """The processes that are there from the first request on that needs them, so that whatever is
    open more at the end was left open."""
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 1,
        "structured_outputs": {"choice": ["one", "two"]},
    }
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_SECONDS)


def scored(token: int) -> TokenLogprobs:
    return TokenLogprobs({token: -0.5, 9: -1.5, 11: -2.5}, 1)


def _changes(running: RunningServer) -> Changes:
    """Of an instance whose supervisor does some of what it is asked for at once."""

    def ask(wish: Resize | Release | Renew) -> None:
        error = None if wish.ticket % 2 else "there is none"
        running.call(running.instance.changes.hear, Resized(wish.ticket, [0], [0], 0.1, error))

    return Changes(ask)


def fuzz(server: RunningServer, shots: int, seed: int) -> Tally:
    """So many requests; fails where one of them isn't borne."""
    maker, tally = Maker(seed, KEYS, ADMIN_KEYS), Tally()
    made = iter(maker.shot, None)
    with watched_callbacks(server.thread) as callbacks:
        asyncio.run(shoot(server.url, islice(made, shots // 4), tally))
        rest(server)
        descriptors, memory = open_descriptors(), resident_bytes()
        asyncio.run(shoot(server.url, islice(made, shots - shots // 4), tally))
        rest(server)
    seconds, what = callbacks.longest
    growth = resident_bytes() - memory
    tally.told = (
        f"{tally.shots} requests of seed {seed}: {dict(tally.statuses)}; a callback took "
        f"{seconds:.3f} s of CPU at most; {growth / 2**20:.1f} MiB more"
    )
    assert tally.wrong[:5] == []
    assert tally.shots == shots
    assert seconds < LONGEST_SECONDS, f"a callback took {seconds:.3f} s of CPU: {what}"
    assert open_descriptors() <= descriptors
    assert growth < GROWTH_BYTES
    return tally


def rest(server: RunningServer) -> None:
    """Until nothing is in flight any more, and nothing counts for any client."""
    deadline = time.monotonic() + WAIT_SECONDS
    shares = server.engine.shares
    while (
        server.engine.outstanding
        or server.instance.occupancy.in_flight
        or any(shares.held(thing) for thing in ("sequences in flight", "bytes of requests' memory"))
    ):
        assert time.monotonic() < deadline, "it is still being served"
        time.sleep(0.01)


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_hundreds_of_made_up_and_damaged_requests(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    tally = fuzz(server, QUICK, SEED)
    assert "Traceback" not in capfd.readouterr().err
    assert tally.statuses[200] > QUICK // 10
    assert {400, 401, 404, 405, 413, 415} & set(tally.statuses) >= {400, 405, 415}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_made_up_and_damaged_requests(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    tally = fuzz(server, ALL, SEED + 1)
    assert "Traceback" not in capfd.readouterr().err, "of a helper process"
    with capfd.disabled():
        print(tally.told)
