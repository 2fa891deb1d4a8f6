"""Connections of the road `dist` that are slow, stall, and break at any byte, by seed: tokens are
the undisturbed ones, whatever is lost is named, and nothing waits for ever."""

import logging
import os
import re
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from time import monotonic, sleep

import pytest

from megainfer.m2n.dist import groups, link, site
from megainfer.m2n.host import meeting
from tests.support.bad_dist import BadCluster, Cuts, Outcome
from tests.support.checkpoints import (
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.local_cluster import answers_of, prompts_of, submit_all
from tests.support.m2n_cluster import fork

ALL, BATCH, AT_ONCE = 500, 10, 5
"""Seeds in all, of one test, and of trials that run at the same time: mostly they wait."""
NEW_TOKENS = 6
LENGTHS = (1, 5, 17, 30)
NODES = ((1, 1), (2, 1), (1, 2), (2, 2), (2, 3))
SILENCE_SECONDS, PULSE_SECONDS, GROUP_SECONDS, MEETING_SECONDS = 1, 0.1, 0.7, 1.5
"""Shorter than in earnest; a machine that is busy for so long loses a link more, and no token."""
END_SECONDS = 30.0
TRIAL_SECONDS = 240.0
FORKING = threading.Lock()
"""Who is forked meanwhile has the other ends, and an end would be seen when that one ends."""
NAMED = re.compile(r"(attention|expert) node \d")
Reference = tuple[Path, list[list[int]], list[Greedy]]

batches = pytest.mark.parametrize(
    "first",
    [pytest.param(n, marks=() if n < BATCH else pytest.mark.slow) for n in range(0, ALL, BATCH)],
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("bad"))
    prompts = decisive(oracle(folder), lambda seed: prompts_of(seed, LENGTHS), NEW_TOKENS)
    return folder, *prompts


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(link, "GROUP_SECONDS", GROUP_SECONDS)
    monkeypatch.setattr(groups, "GROUP_SECONDS", GROUP_SECONDS)
    monkeypatch.setattr(site, "PULSE_SECONDS", PULSE_SECONDS)
    monkeypatch.setattr(meeting, "HANDSHAKE_SECONDS", MEETING_SECONDS)


@pytest.mark.timeout(4 * TRIAL_SECONDS)
@batches
def test_tokens_are_exact_or_an_error_says_why(reference: Reference, first: int) -> None:
    """Each seed in a process of its own, whose end by itself would be told."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        said = list(threads.map(lambda seed: tried(reference, seed), range(first, first + BATCH)))
    print("\n".join(said))
    assert [line for line in said if not line.startswith("exact")] == []


def tried(reference: Reference, seed: int) -> str:
    """What a trial has said, or how its process has ended."""
    with FORKING:
        ours, theirs = Pipe()
        process = fork(told, theirs, reference, seed)
        theirs.close()
    try:
        try:
            if ours in wait([ours, process.sentinel], TRIAL_SECONDS) or ours.poll():
                text: str = ours.recv()
            else:
                text = (
                    "no word, and no end in time" if process.is_alive() else "its process is gone"
                )
        except EOFError:
            text = "its process has ended"
        process.join(END_SECONDS)
        assert process.exitcode == 0, f"seed {seed}: {text}, exit status {process.exitcode}"
        return f"{text} (seed {seed})"
    finally:
        process.kill()
        process.join(END_SECONDS)
        ours.close()


def told(to: Connection, reference: Reference, seed: int) -> None:
    try:
        text = trial(reference, seed)
    except BaseException:  # the process boundary
        text = traceback.format_exc()
    to.send(text)
    os._exit(0)  # what else an end does is for processes that no thread has forked


def trial(reference: Reference, seed: int) -> str:
    folder, prompts, expected = reference
    lots, cuts = Random(seed), Cuts()
    nodes, m = lots.choice(NODES), lots.randint(1, 3)
    logging.getLogger("megainfer.m2n.dist.link").addHandler(cuts)
    cluster = BadCluster(
        seed, folder, m, *nodes, max_num_batched_tokens=24, meeting_seconds=MEETING_SECONDS
    )
    submit_all(cluster, prompts, NEW_TOKENS)
    cluster.drain(TRIAL_SECONDS)
    outcome = cluster.hub.outcome
    assert_same_greedy(expected, answers_of(cluster, prompts))
    cluster.close()
    assert all(map(NAMED.search, outcome.unmet)), outcome
    assert all(map(NAMED.search, cuts.reasons)), cuts.reasons
    assert_all_threads_end()
    return f"exact, {nodes} m={m}: {summary(outcome, cuts)}"


def summary(outcome: Outcome, cuts: Cuts) -> str:
    faults = ", ".join(
        f"{n}-{e} at meeting {times}: {connection} {way.value} {fault.kind.value} after "
        f"{fault.after} bytes for {fault.seconds:.2g} s"
        for (n, e, times), (connection, way, fault) in outcome.faults.items()
    )
    return f"faults [{faults}] unmet {outcome.unmet} lost {outcome.lost} cuts {cuts.reasons}"


def assert_all_threads_end() -> None:
    deadline = monotonic() + END_SECONDS
    while left := [t.name for t in threading.enumerate() if t.name.startswith("m2n-")]:
        assert monotonic() < deadline, left
        sleep(0.01)  # a thread that ends tells nobody
