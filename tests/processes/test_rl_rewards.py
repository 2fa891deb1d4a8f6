"""Rewards in processes of their own: what hangs, raises or dies is a counted skip, no more."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from megainfer.errors import ConfigError
from megainfer.rl.rewards.choice import open_reward
from megainfer.rl.rewards.score import Attempt, Reward, Score

OWN = "tests.support.rl_rewards"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reward() -> Iterator[Reward]:
    with closing(open_reward(f"{OWN}:behave", workers=2, seconds=20.0)) as opened:
        yield opened


def scored(reward: Reward, *responses: str) -> list[Score]:
    return reward.score([Attempt("the problem", response, "42") for response in responses])


def test_each_has_its_own_score_whatever_the_others_do(reward: Reward) -> None:
    responses = ["42", "raise", "41", "exit", "nan", "text", "42", "read"]
    assert scored(reward, *responses) == [
        Score(1.0),
        Score(None, "it raised LookupError: no 42 in the problem"),
        Score(0.0),
        Score(None, "it raised SystemExit: 3"),
        Score(None, "it gave nan"),
        Score(None, "it gave '1', which is no number"),
        Score(1.0),
        Score(0.0),
    ]
    assert scored(reward) == []


def test_a_process_that_dies_is_replaced(reward: Reward) -> None:
    died = Score(None, "no reward within 20 s, or its process died")
    assert scored(reward, "die", "42", "die", "42", "41") == [
        died,
        Score(1.0),
        died,
        Score(1.0),
        Score(0.0),
    ]


def test_one_that_hangs_is_killed_in_time_and_the_others_are_scored() -> None:
    # The limit holds for every answer: a machine at work may need a second for any.
    with closing(open_reward(f"{OWN}:behave", workers=1, seconds=3.0)) as reward:
        assert scored(reward, "hang", "42") == [
            Score(None, "no reward within 3 s, or its process died"),
            Score(1.0),
        ]


ASKING = """
import sys
from megainfer.rl.rewards.choice import open_reward
from megainfer.rl.rewards.score import Attempt
reward = open_reward("tests.support.rl_rewards:hang_at", workers=1, seconds=3600.0)
reward.score([Attempt("?", sys.argv[1], "?")])
"""


def test_one_that_hangs_doesnt_outlive_a_trainer_that_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    trainer = subprocess.Popen([sys.executable, "-c", ASKING, str(begun)], cwd=ROOT)
    try:
        with begun.open() as told:  # until the function has been called
            worker = os.pidfd_open(int(told.read()))
    finally:
        trainer.kill()
        trainer.wait()
    try:
        ended, _, _ = select.select([worker], [], [], 30.0)
        assert ended, "the process that scores lives on"
    finally:
        os.close(worker)


def test_a_module_that_breaks_meanwhile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    monkeypatch.setenv("RL_REWARDS_BREAK", str(broken))
    with closing(open_reward(f"{OWN}:behave", workers=1, seconds=20.0)) as reward:
        broken.touch()
        assert scored(reward, "die")[0].reward is None
        with pytest.raises(ConfigError, match="can't be imported: ImportError: broken by now"):
            scored(reward, "42")


def test_all_workers_work() -> None:
    with closing(open_reward(f"{OWN}:pid", workers=2, seconds=60.0)) as reward:
        scores = scored(reward, "1", "1", "0", "0")
    pids = {score.reward for score in scores}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_unicode_and_length_come_through() -> None:
    text = "\ud800\x00ü" * 10**5
    with closing(open_reward(f"{OWN}:behave", workers=1, seconds=60.0)) as reward:
        assert reward.score([Attempt("?", text, text)]) == [Score(1.0)]


def test_a_pattern_that_backtracks_for_ages_is_a_skip() -> None:
    with closing(open_reward(r"regex:^(a+)+$", workers=1, seconds=3.0)) as reward:
        bomb, usual = Attempt("?", "a" * 60 + "b", "x"), Attempt("?", "aa", "aa")
        assert [score.reward for score in reward.score([bomb, usual])] == [None, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", "there is no module 'no_such_module' to import"),
        (f"{OWN}:none", f"module '{OWN}' has no 'none'"),
        (f"{OWN}:NO_FUNCTION", f"'NO_FUNCTION' of module '{OWN}' is no function"),
        ("regex:(", r"'\(' is no regular expression: missing \)"),
        ("tests.support.rl_broken:f", "can't be imported: ZeroDivisionError: "),
    ],
)
def test_one_that_cant_be_used_is_refused_at_once(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"reward: .*{message}"):
        open_reward(spec, workers=1, seconds=1.0)


def test_math_verify() -> None:
    with closing(open_reward("math-verify", workers=1, seconds=60.0)) as reward:
        attempts = [
            Attempt("?", r"so it is $\frac{2}{4}$", r"\frac{1}{2}"),
            Attempt("?", "so it is $0.5$", "1/2"),
            Attempt("?", r"\boxed{x+1}", "1+x"),
            Attempt("?", r"\boxed{x+2}", "1+x"),
            Attempt("?", "no idea", "1/2"),
        ]
        assert [score.reward for score in reward.score(attempts)] == [1.0, 1.0, 1.0, 0.0, 0.0]
