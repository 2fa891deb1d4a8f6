"""The thread that brings other weights in: what it says, what takes its place, how it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megainfer.checkpoint.reader import LooseFiles, WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.errors import CheckpointError, ConfigError
from megainfer.launch.renewing import Renewer
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.messages.weights import OF_FOLDER, WeightFiles
from megainfer.topology import Placement, WeightVersion, contiguous_placement

SECONDS = 30.0
PLACEMENT = contiguous_placement(4, 1, [0])


class Model:
    """Takes one tensor, and waits before it is through until it may go on."""

    def __init__(self, file: Path) -> None:
        self.value = 0.0
        self.may_end = Event()
        self.begun = Event()
        self.busy = False
        self._file = file
        self.renewer = Renewer(OF_FOLDER, self._open, self._load, lambda: self.busy)

    def _open(self, weights: WeightFiles) -> WeightReader:
        return WeightReader(LooseFiles(tuple(map(Path, weights.files)), None))

    def _load(self, reader: WeightReader, placement: Placement) -> Switch:
        assert placement is PLACEMENT
        self.begun.set()
        assert self.may_end.wait(SECONDS)
        loaded = float(reader.get("x", (1,), torch.float32))
        return lambda: setattr(self, "value", loaded)

    def wish(self, number: int, file: Path | None = None) -> Prepare:
        weights = WeightFiles(WeightVersion(number, str(number)), (str(file or self._file),))
        return Prepare(10 + number, PLACEMENT, weights)


def said(renewer: Renewer) -> list[Prepared]:
    return until(renewer.news)


def until(ask: Callable[[], Any]) -> Any:
    """What it gives in the end."""
    deadline = monotonic() + SECONDS
    while not (answer := ask()):
        assert monotonic() < deadline
        sleep(0.001)
    return answer


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    file = tmp_path / "weights.safetensors"
    save_file({"x": torch.tensor([7.0])}, file)
    model = Model(file)
    yield model
    model.may_end.set()
    model.renewer.drop()


def test_they_are_computed_with_once_they_are_taken(model: Model) -> None:
    model.renewer.prepare(model.wish(1))
    assert model.renewer.news() == []
    assert model.renewer.sleep_bound(1.0) < 1.0
    model.may_end.set()
    assert said(model.renewer) == [Prepared(11)]
    assert model.renewer.news() == []  # it is said once
    assert model.renewer.sleep_bound(1.0) == 1.0
    assert model.renewer.take(OF_FOLDER.version) is None  # another epoch, with the old ones
    assert model.value == 0.0
    switch = model.renewer.take(WeightVersion(1, "1"))
    assert switch is not None
    switch()
    assert model.value == 7.0
    assert model.renewer.weights == model.wish(1).weights
    assert model.renewer.take(WeightVersion(1, "1")) is None


def test_what_was_not_loaded_can_not_be_taken(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"weights '1' .* were not loaded here"):
        model.renewer.take(WeightVersion(1, "1"))
    model.renewer.prepare(model.wish(1))
    assert model.begun.wait(SECONDS)
    with pytest.raises(ConfigError, match="were not loaded here"):
        model.renewer.take(WeightVersion(1, "1"))
    model.may_end.set()
    said(model.renewer)
    with pytest.raises(ConfigError, match=r"weights '2' .* were not loaded here"):
        model.renewer.take(WeightVersion(2, "2"))


def test_a_newer_wish_takes_the_place_of_an_older(model: Model, tmp_path: Path) -> None:
    newer = tmp_path / "newer.safetensors"
    save_file({"x": torch.tensor([8.0])}, newer)
    model.renewer.prepare(model.wish(1))
    assert model.begun.wait(SECONDS)
    model.renewer.prepare(model.wish(2, newer))
    model.may_end.set()
    assert said(model.renewer) == [Prepared(12)]
    switch = model.renewer.take(WeightVersion(2, "2"))
    assert switch is not None
    switch()
    assert model.value == 8.0


def test_those_that_it_has_are_not_read(model: Model) -> None:
    model.renewer.prepare(model.wish(1))
    assert model.begun.wait(SECONDS)
    model.renewer.prepare(Prepare(5, PLACEMENT, OF_FOLDER))
    assert model.renewer.sleep_bound(1.0) == 1.0  # what was being read is forgotten
    model.may_end.set()
    with pytest.raises(ConfigError):
        model.renewer.take(WeightVersion(1, "1"))


def test_what_goes_wrong_is_said(model: Model, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"y": torch.tensor([7.0])}, other)
    model.may_end.set()
    model.renewer.prepare(model.wish(1, other))
    (answer,) = said(model.renewer)
    assert answer.error == f"can't load them: {other} holds no tensor x"
    with pytest.raises(ConfigError):
        model.renewer.take(WeightVersion(1, "1"))
    model.renewer.prepare(model.wish(2, tmp_path / "nowhere"))
    (answer,) = said(model.renewer)
    assert "nowhere is not a regular file" in str(answer.error)


def test_a_busy_node_s_thread_rests(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    model.busy = True
    model.may_end.set()
    monkeypatch.setattr("megainfer.launch.renewing.WORK_SECONDS", 0.0)
    monkeypatch.setattr("megainfer.launch.renewing.Event", lambda: Watch(rests))
    model.renewer.prepare(model.wish(1))
    assert said(model.renewer) == [Prepared(11)]
    assert rests, "it read a tensor"
    assert min(rests) > 0.0
    rests.clear()
    model.busy = False
    model.renewer.prepare(model.wish(2))
    assert said(model.renewer) == [Prepared(12)]
    assert set(rests) == {0.0}


class Watch:
    """An event that is waited for in no time, and notes for how long it would have been."""

    def __init__(self, rests: list[float]) -> None:
        self._rests = rests

    def wait(self, seconds: float) -> bool:
        self._rests.append(seconds)
        return False

    def set(self) -> None:
        pass

    def is_set(self) -> bool:
        return False


def test_loose_files_are_read_as_a_folder_s(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"x": torch.tensor([1.0])}, first)
    save_file({"y": torch.tensor([2.0])}, second)
    with WeightReader(LooseFiles((first, second), None)) as reader:
        assert [float(reader.get(name, (1,), torch.float32)) for name in "xy"] == [1.0, 2.0]
    save_file({"x": torch.tensor([2.0])}, second)
    with pytest.raises(CheckpointError, match=r"both .*a\.safetensors and .*b\.safetensors hold"):
        WeightReader(LooseFiles((first, second), None))
