"""Generation stands still and goes on, on one attention node with its experts."""

from itertools import count
from pathlib import Path

import pytest

from megainfer.messages.pausing import PauseMode
from megainfer.messages.requests import Abort, FinishReason
from tests.support.checkpoints import write_checkpoint
from tests.support.local_cluster import (
    LocalCluster,
    answers_of,
    greedy_submit,
    prompts_of,
    submit_all,
)

LENGTHS = (5, 17, 40, 33, 12)
NEW_TOKENS = 24
QUIET_TURNS = 50
MOST_TURNS = 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> list[list[int]]:
    cluster = begun(folder, tokens=0)
    cluster.drain()
    return answers_of(cluster, prompts_of(0, LENGTHS))


def begun(folder: Path, tokens: int = 3) -> LocalCluster:
    """Serving until some have so many tokens; two of the five wait for a place."""
    cluster = LocalCluster(folder, 2, 1, 2, max_num_seqs=3)
    submit_all(cluster, prompts_of(0, LENGTHS), NEW_TOKENS)
    while max(len(answer.tokens) for answer in cluster.answers.values()) < tokens:
        cluster.turn()
    return cluster


def pause(cluster: LocalCluster, mode: PauseMode) -> None:
    """Until it has come about."""
    (node,) = cluster.attention
    node.intake.pause(mode)
    for turn in count():
        if node.intake.is_at_rest:
            return
        assert turn < MOST_TURNS
        cluster.turn()


def told(cluster: LocalCluster) -> list[int]:
    """Tokens of each request so far."""
    return [len(answer.tokens) for answer in cluster.answers.values()]


def stand_still(cluster: LocalCluster) -> None:
    before = told(cluster)
    for _ in range(QUIET_TURNS):
        cluster.turn()
    assert told(cluster) == before


def resume(cluster: LocalCluster) -> None:
    cluster.attention[0].intake.pause(None)
    cluster.drain()


def test_those_that_are_kept_go_on_where_they_stood(folder: Path, undisturbed) -> None:
    cluster = begun(folder)
    pause(cluster, PauseMode.KEEP)
    assert 0 < sum(told(cluster)) < NEW_TOKENS * len(LENGTHS)
    cluster.submit(0, greedy_submit("new", [1, 2, 3], 4))
    stand_still(cluster)
    assert cluster.attention[0].counters()["waiting"] == 3  # two of before, and the new one
    resume(cluster)
    assert answers_of(cluster, prompts_of(0, LENGTHS)) == undisturbed
    assert len(cluster.answers["new"].tokens) == 4


def test_those_that_are_waited_for_end(folder: Path, undisturbed) -> None:
    cluster = begun(folder)
    cluster.attention[0].intake.pause(PauseMode.WAIT)
    cluster.submit(0, greedy_submit("new", [1, 2, 3], 4))
    assert not cluster.attention[0].intake.is_at_rest
    pause(cluster, PauseMode.WAIT)
    assert answers_of(cluster, prompts_of(0, LENGTHS)) == undisturbed
    stand_still(cluster)
    assert cluster.answers["new"].tokens == []
    resume(cluster)
    assert len(cluster.answers["new"].tokens) == 4


def test_those_that_are_aborted_are_told_so(folder: Path, undisturbed) -> None:
    cluster = begun(folder)
    pause(cluster, PauseMode.ABORT)
    cluster.submit(0, greedy_submit("new", [1, 2, 3], 4))
    stand_still(cluster)
    for i, expected in enumerate(undisturbed):
        answer = cluster.answers[str(i)]
        assert answer.finish_reason is FinishReason.ABORT
        assert answer.tokens == expected[: len(answer.tokens)]
    assert cluster.free_blocks() == [cluster.plan.num_blocks]
    resume(cluster)
    assert len(cluster.answers["new"].tokens) == 4


def test_who_hangs_up_during_a_pause_is_gone(folder: Path) -> None:
    cluster = begun(folder)
    pause(cluster, PauseMode.KEEP)
    cluster.submit(0, greedy_submit("new", [1, 2, 3], 4))
    cluster.attention[0].hear(Abort("new"))
    cluster.attention[0].hear(Abort("0"))
    before = told(cluster)[0]
    resume(cluster)
    assert cluster.answers["new"].tokens == []
    assert told(cluster)[0] == before


def test_an_epoch_ends_no_pause(folder: Path, undisturbed) -> None:
    from dataclasses import replace

    cluster = begun(folder)
    cluster.attention[0].intake.pause(PauseMode.KEEP)
    membership = cluster.membership
    cluster.enter(replace(membership, epoch=membership.epoch + 1))  # steps in flight are taken back
    assert cluster.attention[0].intake.is_at_rest
    stand_still(cluster)
    resume(cluster)
    assert answers_of(cluster, prompts_of(0, LENGTHS)) == undisturbed


def test_nothing_to_do_is_rest_at_once(folder: Path) -> None:
    cluster = LocalCluster(folder, 1, 1, 1)
    for mode in PauseMode:
        cluster.attention[0].intake.pause(mode)
        assert cluster.attention[0].intake.is_at_rest
