"""`benchmarks/rl_learning.py`: what it reports adds up, and policies learn."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import TRAINING, importing
from tests.support.instruments import run


def learning(folder: Path, *arguments: str, seconds: float = 300) -> dict[str, dict[str, Any]]:
    """By run what `rl_learning.py` says of it, and `rows`, its metrics."""
    report = folder / "runs.jsonl"
    options = ("--folder", folder, *arguments, "--json", report)
    with importing(*TRAINING):
        finished = run("rl_learning.py", *options, seconds=seconds)
    assert finished.returncode == 0, finished.stderr
    found = {f"{each['arm']}-{each['seed']}": each for each in lines_of(report)}
    for name, each in found.items():
        assert "cores" in each["hardware"]
        each["rows"] = lines_of(folder / name / "metrics.jsonl")
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_runs_have_spent_is_reported(tmp_path: Path) -> None:
    sizes = ("--longest", "4", "--steps", "2", "--prompts", "2", "--answers", "2")
    short = ("--held-out", "3", "--warm-up", "2", "--first", "1", "--evaluations", "2")
    plot = tmp_path / "curves.png"
    more = ("--shorter", "4", "--plot", str(plot))
    found = learning(tmp_path, "--arms", "tppo,grpo", *sizes, *short, *more)
    assert found.keys() == {"tppo-0", "grpo-0"}
    assert plot.read_bytes().startswith(b"\x89PNG")
    for name, each in found.items():
        rows, (start, *_, last), told = each["rows"], each["curve"], each["summary"]
        assert len(rows) == (8 if name == "tppo-0" else 2), "T-PPO's steps are shorter"
        assert len(each["curve"]) == 3
        assert start["step"] == start["tokens"] == 0
        assert last["step"] == len(rows)
        assert last["tokens"] == sum(row["rollout/tokens"] for row in rows)
        assert last["decode_steps"] == sum(row["rollout/longest"] for row in rows)
        assert last["gpu_context_seconds"] > start["gpu_context_seconds"] == 0
        assert 0 < told["occupancy"] <= 1
        assert 0 < told["engine_idle"] < 1
        assert told["mismatch"] < 1e-4
        assert told["decode_steps_to_solved"] is told["gpu_decode_seconds_to_solved"] is None


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what the clock says."""
    clocks = ("seconds/", "idle/")
    return [{n: v for n, v in row.items() if not n.startswith(clocks)} for row in rows]


@pytest.mark.timeout(400)
def test_ppo_learns_and_windows_as_long_as_answers_are_ppo(tmp_path: Path) -> None:
    sizes = ("--longest", "6", "--steps", "16", "--first", "2", "--evaluations", "2")
    more = ("--held-out", "128", "--warm-up", "200", "--prompts", "16")
    found = learning(tmp_path, "--arms", "ppo,tppo-whole", *sizes, *more)
    start, *_, last = found["ppo-0"]["curve"]
    assert last["pass@1"] > start["pass@1"] + 0.15
    assert last["greedy"] > 0.9
    assert timeless(found["ppo-0"]["rows"]) == timeless(found["tppo-whole-0"]["rows"])


def on_gpus(told: dict[str, float]) -> float:
    """Seconds of rollouts to three in four solved."""
    return told["gpu_decode_seconds_to_solved"] + told["gpu_context_seconds_to_solved"]


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_policies_learn_and_windows_save_decoding(tmp_path: Path) -> None:
    """The comparison's main arms as docs/rl.md has them, with one seed, which may be as far below
    the mean of three as that page's were."""
    found = learning(tmp_path, "--arms", "ppo,tppo", seconds=1800)
    ppo, tppo = found["ppo-0"]["summary"], found["tppo-0"]["summary"]
    assert ppo["pass@1"] >= 0.85
    assert ppo["greedy"] >= 0.97
    assert tppo["pass@1"] >= 0.9 * ppo["pass@1"]
    assert tppo["decode_steps_to_solved"] <= 0.5 * ppo["decode_steps_to_solved"]
    assert on_gpus(tppo) <= 0.65 * on_gpus(ppo)
    assert tppo["occupancy"] > ppo["occupancy"]
