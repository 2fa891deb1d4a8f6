"""What a run writes: checkpoints, its state, metrics."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import CheckpointError
from megainfer.rl.run.checkpoints import Checkpoints
from megainfer.rl.run.metrics_file import MetricsFile
from megainfer.rl.run.state import RunState
from megainfer.rl.samples.sample import Sample, Window
from tests.support.rl_samples import sample_of


def test_the_latest_checkpoints_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 20, 100):
        path = checkpoints.save(step, lambda folder: (folder / "a").write_text("x") and None)
        assert checkpoints.latest() == path
    assert sorted(p.name for p in path.parent.iterdir()) == ["step-00000020", "step-00000100"]


def test_one_that_is_not_whole_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    first = checkpoints.save(1, lambda folder: None)

    def breaks(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        checkpoints.save(2, breaks)
    assert checkpoints.latest() == first
    second = checkpoints.save(2, lambda folder: None)
    assert list(second.iterdir()) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, lambda folder: (folder / "old").touch())
    path = checkpoints.save(3, lambda folder: (folder / "new").touch())
    assert [p.name for p in path.iterdir()] == ["new"]


finite = st.floats(allow_nan=False, allow_infinity=False)
tokens = st.integers(0, 10**6)


@given(st.lists(st.tuples(tokens, finite, finite), min_size=1), st.integers(0, 2**62))
def test_a_state_is_read_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, float]], number: int
) -> None:
    folder = tmp_path_factory.mktemp("state")
    ids, logprobs, values = zip(*rows, strict=True)
    sample = Sample(number, 1, 2, (3, 4), [Window(ids, logprobs, 5, values)])
    state = RunState(
        9, 8, number + 1, 7, 6, 5, "d", [sample], [sample_of(number=3)], {"a": [None, 0.1]}
    )
    state.save(folder)
    assert RunState.load(folder) == state


def test_a_state_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json can't be read: .*No such file"):
        RunState.load(tmp_path)
    (tmp_path / "run.json").write_text('{"step": "one"}')
    with pytest.raises(CheckpointError, match=r"run\.json can't be read: Expected `int`"):
        RunState.load(tmp_path)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_go_on_after_the_step_that_is_resumed(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, 0, tensorboard=False)
    for step in range(1, 5):
        first.write(step, {"x": step / 2}, [{"response": "a"}] * 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x')  # a kill in the middle of a line
    resumed = MetricsFile(tmp_path, 2, tensorboard=False)
    resumed.write(3, {"x": 30.0, "y": float("nan")}, [])
    assert rows_of(tmp_path / "metrics.jsonl") == [
        {"step": 1, "x": 0.5},
        {"step": 2, "x": 1.0},
        {"step": 3, "x": 30.0, "y": None},
    ]
    steps = [row["step"] for row in rows_of(tmp_path / "texts.jsonl")]
    assert steps == [1, 1, 2, 2]
