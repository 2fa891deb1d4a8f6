"""Connections of the road `dist` that are slow, stall, and break at any byte, by seed: tokens are
the undisturbed ones, whatever is lost is named, and nothing waits for ever."""

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import monotonic, sleep

import pytest
import torch

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

QUICK, ALL = 8, 500
NEW_TOKENS = 6
LENGTHS = (1, 5, 17, 30)
NODES = ((1, 1), (2, 1), (1, 2), (2, 2), (2, 3))
SILENCE_SECONDS, PULSE_SECONDS, GROUP_SECONDS, MEETING_SECONDS = 1, 0.1, 0.7, 1.5
"""Shorter than in earnest; a machine that is busy for so long loses a link more, and no token."""
END_SECONDS = 30.0
TRIAL_SECONDS = 120.0
NAMED = re.compile(r"(attention|expert) node \d")

seeds = pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n < QUICK else pytest.mark.slow) for n in range(ALL)],
)


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[list[int]], list[Greedy]]:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("bad"))
    prompts = decisive(oracle(folder), lambda seed: prompts_of(seed, LENGTHS), NEW_TOKENS)
    return folder, *prompts


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(link, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(link, "GROUP_SECONDS", GROUP_SECONDS)
    monkeypatch.setattr(groups, "GROUP_SECONDS", GROUP_SECONDS)
    monkeypatch.setattr(site, "PULSE_SECONDS", PULSE_SECONDS)
    monkeypatch.setattr(meeting, "HANDSHAKE_SECONDS", MEETING_SECONDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@seeds
def test_tokens_are_exact_or_an_error_says_why(
    reference: tuple[Path, list[list[int]], list[Greedy]], seed: int
) -> None:
    folder, prompts, expected = reference
    lots, cuts = Random(seed), Cuts()
    nodes, m = lots.choice(NODES), lots.randint(1, 3)
    logger = logging.getLogger("megainfer.m2n.dist.link")
    logger.addHandler(cuts)
    try:
        cluster = BadCluster(
            seed, folder, m, *nodes, max_num_batched_tokens=24, meeting_seconds=MEETING_SECONDS
        )
        try:
            submit_all(cluster, prompts, NEW_TOKENS)
            cluster.drain(TRIAL_SECONDS)
            outcome = cluster.hub.outcome
            assert_same_greedy(expected, answers_of(cluster, prompts))
        finally:
            cluster.close()
    finally:
        logger.removeHandler(cuts)
    assert all(map(NAMED.search, outcome.unmet)), outcome
    assert all(map(NAMED.search, cuts.reasons)), cuts.reasons
    assert_all_threads_end()
    print(f"OUTCOME {seed} {nodes} m={m}", summary(outcome, cuts))


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
