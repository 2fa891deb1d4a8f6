"""Experts from other expert nodes, over real connections and groups of one process: the bytes of
each, and what becomes of those who can't give, won't, or end in the middle."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint.headers import INDEX
from megainfer.checkpoint.lacking import lacking
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.selection import Precision, open_backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.handover import asking as asking_module
from megainfer.expert_node.handover import giving
from megainfer.expert_node.handover.asking import Asking
from megainfer.expert_node.handover.giving import Giver
from megainfer.expert_node.handover.terms import ANSWER_SECONDS, HandoverTerms
from megainfer.expert_node.moving import Mover
from megainfer.messages.to_child import Prepare
from megainfer.messages.weights import GivingNode
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec
from megainfer.topology import Placement, contiguous_placement
from tests.support.checkpoints import write_checkpoint

KEY, HOST = b"k" * 32, "127.0.0.1"
TERMS = HandoverTerms(KEY, HOST, 0)
NODES, SECONDS = 2, 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases."""
    return write_checkpoint("gpt_oss", "alternating", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def spec(folder: Path) -> ModelSpec:
    return load_spec(folder)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def backend(kernels: str = "reference", experts: str = "float32") -> Backend:
    return open_backend(kernels, Precision("float32", experts, "float32", "auto"), 1, False)


def placement_of(spec: ModelSpec) -> Placement:
    """Each node has its share, and one of the other's."""
    return contiguous_placement(spec.num_experts, NODES, spec.moe_layers, 1)


def model_of(spec: ModelSpec, folder: Path, node: int, own: Backend) -> ExpertModel:
    with WeightReader(folder) as reader:
        return ExpertModel(spec, reader, placement_of(spec), node, own)


def giver_of(opened: ExitStack, node: int, model: Any, terms: HandoverTerms = TERMS) -> GivingNode:
    return address_of(opened_giver(opened, node, model, terms))


def opened_giver(opened: ExitStack, node: int, model: Any, terms: HandoverTerms = TERMS) -> Giver:
    giver = Giver(node, model, terms)
    opened.callback(giver.close)
    return giver


def address_of(giver: Giver) -> GivingNode:
    return GivingNode(giver._node, *giver.address)


def all_of(model: ExpertModel) -> dict[tuple[int, int], Tensor | None]:
    return {
        (layer, expert): model.lend(layer, expert)
        for layer, slots in model.held.items()
        for expert in slots
    }


def whole(spec: ModelSpec) -> Placement:
    return contiguous_placement(spec.num_experts, 1, spec.moe_layers, 0)


@pytest.mark.parametrize(
    ("kernels", "experts"),
    [("reference", "float32"), ("reference", "bfloat16"), ("cpu", "float32"), ("cpu", "int4")],
)
def test_experts_are_those_that_were_read(
    spec: ModelSpec, folder: Path, opened: ExitStack, kernels: str, experts: str
) -> None:
    """Of two nodes, neither of which has all, and to the last bit."""
    models = [model_of(spec, folder, node, backend(kernels, experts)) for node in range(NODES)]
    givers = [giver_of(opened, node, model) for node, model in enumerate(models)]
    new = ExpertModel(spec, None, whole(spec), 0, backend(kernels, experts))
    with closing(Asking(givers, TERMS)) as asking:
        assert new.bring(asking.prepared) == []
    with WeightReader(folder) as reader:
        read = ExpertModel(spec, reader, whole(spec), 0, backend(kernels, experts))
    expected = all_of(read)
    found = all_of(new)
    assert found.keys() == expected.keys()
    for place, stored in found.items():
        assert stored is not None
        assert torch.equal(stored, expected[place]), place  # type: ignore[arg-type]  # held


def test_what_nobody_has_is_read(spec: ModelSpec, folder: Path, opened: ExitStack) -> None:
    model = model_of(spec, folder, 0, backend())
    giver = giver_of(opened, 0, model)
    new = ExpertModel(spec, None, whole(spec), 0, backend())
    with closing(Asking([giver], TERMS)) as asking:
        left = new.bring(asking.prepared)
    assert set(left) == all_of(new_of(spec, folder)).keys() - all_of(model).keys()
    with WeightReader(folder) as reader:
        new.load(reader, left)
    assert all(stored is not None for stored in all_of(new).values())


def new_of(spec: ModelSpec, folder: Path) -> ExpertModel:
    with WeightReader(folder) as reader:
        return ExpertModel(spec, reader, whole(spec), 0, backend())


class Faulty:
    """A node's model, as long as it gives. fault: what becomes of it after `good` experts."""

    def __init__(self, model: ExpertModel, good: int, fault: Callable[[Tensor], Tensor]) -> None:
        self._model, self._left, self._fault = model, good, fault

    @property
    def any_layer(self) -> Any:
        return self._model.any_layer

    def lend(self, layer: int, expert: int) -> Tensor | None:
        stored = self._model.lend(layer, expert)
        self._left -= 1
        return stored if stored is None or self._left >= 0 else self._fault(stored)


def ends(stored: Tensor) -> Tensor:
    raise OSError("it has ended")


def is_damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """On its way: its digest is of what it was."""
    digest_of, damaged = giving.digest_of, set[int]()

    def digest(stored: Tensor) -> bytes:
        told = digest_of(stored)
        if id(stored) in damaged:
            stored[len(stored) // 2] ^= 1
        return told

    def damage(stored: Tensor) -> Tensor:
        damaged.add(id(stored))
        return stored

    monkeypatch.setattr(giving, "digest_of", digest)
    return damage


@pytest.mark.parametrize("fault", ["ends", "damaged", "short", "hangs"])
def test_the_next_one_is_asked_where_one_fails_in_the_middle(
    spec: ModelSpec,
    folder: Path,
    opened: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    asked = Event()
    opened.callback(asked.set)
    if fault == "hangs":
        monkeypatch.setattr(asking_module, "ANSWER_SECONDS", 2.0)
    faults: dict[str, Callable[[Tensor], Tensor]] = {
        "ends": ends,
        "damaged": is_damaged(monkeypatch),
        "short": lambda stored: stored[:-8].clone(),
        "hangs": lambda stored: stored[: asked.wait(ANSWER_SECONDS)],
    }
    model = new_of(spec, folder)
    bad = giver_of(opened, 0, Faulty(model, 3, faults[fault]))
    good = giver_of(opened, 1, model)
    new = ExpertModel(spec, None, whole(spec), 0, backend())
    with caplog.at_level(logging.INFO), closing(Asking([bad, good], TERMS)) as asking:
        assert new.bring(asking.prepared) == []
        assert [*asking._pairs] == [good], "who failed is parted with at once"
        asking.close()
    (said,) = [text for text in caplog.messages if "gives no experts" in text]
    assert said.startswith("expert node 0 gives no experts: ")
    assert "3 experts came from expert node 0" in caplog.text
    for place, stored in all_of(new).items():
        assert torch.equal(stored, model.lend(*place))  # type: ignore[arg-type]  # held


@pytest.mark.parametrize(
    ("terms", "own", "text"),
    [
        (HandoverTerms(b"x" * 32, HOST, 0), backend, "not proved that it has this instance's key"),
        (HandoverTerms(KEY, HOST, 1), backend, "in another form, or with other weights"),
        (TERMS, lambda: backend("reference", "bfloat16"), "in another form, or with other weights"),
    ],
)
def test_who_differs_is_given_nothing_and_told_why(
    spec: ModelSpec,
    folder: Path,
    opened: ExitStack,
    caplog: pytest.LogCaptureFixture,
    terms: HandoverTerms,
    own: Callable[[], Backend],
    text: str,
) -> None:
    giver = giver_of(opened, 1, model_of(spec, folder, 1, backend()))
    new = ExpertModel(spec, None, whole(spec), 0, own())
    with closing(Asking([giver], terms)) as asking:
        assert len(new.bring(asking.prepared)) == len(spec.moe_layers) * spec.num_experts
    (said,) = [text for text in caplog.messages if "gives no experts" in text]
    assert text in said


def test_nobody_is_given_what_is_not_there(spec: ModelSpec, folder: Path) -> None:
    model = model_of(spec, folder, 0, backend())
    (away, *_) = set(range(spec.num_experts)) - set(model.held[spec.first_moe_layer])
    assert model.lend(spec.first_moe_layer, away) is None
    assert model.lend(10_000, 0) is None
    assert model.lend(spec.first_moe_layer, 2**32 - 1) is None


# --- who has a lot to do, or nothing --------------------------------------------------------------


def first_place(model: ExpertModel) -> tuple[int, int]:
    layer, slots = next(iter(model.held.items()))
    return layer, slots[0]


def asks(asking: Asking, model: ExpertModel) -> object | None:
    """For the first expert."""
    place = first_place(model)
    return asking.prepared(model.layer(place[0]), place)


def test_many_ask_one_node_and_keep_their_connections(
    spec: ModelSpec, folder: Path, opened: ExitStack
) -> None:
    model = model_of(spec, folder, 0, backend())
    giver = giver_of(opened, 0, model)
    every = [opened.enter_context(closing(Asking([giver], TERMS))) for _ in range(12)]
    assert all(asks(asking, model) is not None for asking in every)


class Room:
    """In place of a giver's: free when this says so."""

    def __init__(self, *free: bool) -> None:
        self.left = [*free]

    def acquire(self, timeout: float) -> bool:
        return self.left.pop(0)

    def release(self) -> None: ...


def test_who_is_busy_is_asked_again(
    spec: ModelSpec, folder: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For this expert, unless another node has it; and for the next one in any case."""
    model = model_of(spec, folder, 0, backend())
    first, second = (opened_giver(opened, node, model) for node in range(2))
    room = Room(False, False, True, False, False, True)
    monkeypatch.setattr(first, "_room", room)
    monkeypatch.setattr(asking_module, "PAUSE_SECONDS", 0.01)
    asking = opened.enter_context(closing(Asking([address_of(first)], TERMS)))
    assert asks(asking, model) is not None
    assert room.left == [False, False, True]
    both = [address_of(first), address_of(second)]
    other = opened.enter_context(closing(Asking(both, TERMS)))
    assert asks(other, model) is not None
    assert other._given == {1: 1}
    assert room.left == [False, True]
    monkeypatch.setattr(asking_module, "BUSY_SECONDS", -1.0)
    assert asks(asking, model) is None
    assert asks(asking, model) is not None


def test_who_finds_no_place_comes_again(
    spec: ModelSpec, folder: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving, "MOST_ASKING", 1)
    model = model_of(spec, folder, 0, backend())
    giver = giver_of(opened, 0, model)
    first, second = (opened.enter_context(closing(Asking([giver], TERMS))) for _ in range(2))
    assert asks(first, model) is not None
    with monkeypatch.context() as patch:
        patch.setattr(asking_module, "BUSY_SECONDS", -1.0)
        assert asks(second, model) is None
    first.close()
    assert asks(second, model) is not None


def test_who_was_not_asked_for_long_is_met_anew(
    spec: ModelSpec, folder: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(spec, folder, 0, backend())
    giver = giver_of(opened, 0, model)
    asking = opened.enter_context(closing(Asking([giver], TERMS)))
    assert asks(asking, model) is not None
    before = asking._pairs[giver].connection
    assert asks(asking, model) is not None
    assert asking._pairs[giver].connection is before
    monkeypatch.setattr(asking_module, "IDLE_SECONDS", -1.0)
    assert asks(asking, model) is not None
    assert asking._pairs[giver].connection is not before
    assert before.fileno() == -1


# --- ends -----------------------------------------------------------------------------------------


def hanging(opened: ExitStack, model: ExpertModel, good: int = 0) -> tuple[GivingNode, Event]:
    """A node that gives so many, and never answers then; and what says that it is asked."""
    asked, over = Event(), Event()

    def hang(stored: Tensor) -> Tensor:
        asked.set()
        over.wait()
        return stored

    giver = giver_of(opened, 0, Faulty(model, good, hang))
    opened.callback(over.set)
    return giver, asked


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for an answer, waits for longer than a test does."""
    monkeypatch.setattr(asking_module, "ANSWER_SECONDS", 3600.0)


@pytest.mark.usefixtures("patient")
def test_an_end_waits_for_nobody_who_hangs(
    spec: ModelSpec, folder: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(spec, folder, 0, backend())
    giver, asked = hanging(opened, model)
    found: list[object] = []
    asking = Asking([giver, giver_of(opened, 1, model)], TERMS)
    thread = Thread(target=lambda: found.append(asks(asking, model)), daemon=True)
    thread.start()
    assert asked.wait(SECONDS)
    asking.end()
    thread.join(SECONDS)
    assert found == [None], "nor is the next one asked"
    assert "gives no experts" not in caplog.text
    assert asks(asking, model) is None
    assert not asking._pairs
    asking.close()


@pytest.mark.usefixtures("patient")
def test_experts_that_move_end_where_somebody_hangs(
    spec: ModelSpec, folder: Path, opened: ExitStack
) -> None:
    model = new_of(spec, folder)
    giver, asked = hanging(opened, model, good=1)
    new = model_of(spec, folder, 0, backend())
    files = Event()

    def no_reader() -> WeightReader:
        files.set()
        raise AssertionError("it was to end")

    mover = Mover(new, no_reader, lambda wish: Asking([giver], TERMS))
    mover.prepare(Prepare(1, whole(spec)))
    reading = mover._reading
    assert reading is not None
    assert asked.wait(SECONDS)
    closer = Thread(target=mover.close, daemon=True)
    closer.start()
    closer.join(SECONDS)
    assert not closer.is_alive()
    reading.join(SECONDS)
    assert not reading.is_alive()
    assert not files.is_set()


def test_who_can_not_be_asked_for_want_of_an_index_is_said(
    spec: ModelSpec, folder: Path, tmp_path: Path
) -> None:
    """By the thread that reads: the node goes on."""
    (tmp_path / INDEX).write_text("{")
    new = model_of(spec, folder, 0, backend())
    wish = Prepare(1, whole(spec))

    def asking(asked_for: Prepare) -> Asking | None:
        assert current_thread() is not main_thread()
        lacking(tmp_path)
        return None

    mover = Mover(new, lambda: WeightReader(folder), asking)
    mover.prepare(wish)
    assert mover._reading is not None
    mover._reading.join(SECONDS)
    (said,) = mover.news()
    assert INDEX in str(said.error)


def test_who_gives_no_more_ends_connections(
    spec: ModelSpec, folder: Path, opened: ExitStack
) -> None:
    model = model_of(spec, folder, 0, backend())
    giver = opened_giver(opened, 0, model)
    asking = opened.enter_context(closing(Asking([address_of(giver)], TERMS)))
    assert asks(asking, model) is not None
    giver.close()
    connection = asking._pairs[address_of(giver)].connection
    connection.settimeout(SECONDS)
    assert connection.recv(1) == b""


def test_who_gets_no_thread_is_sent_away(
    spec: ModelSpec,
    folder: Path,
    opened: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NoThread:
        def __init__(self, **_: Any) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    model = model_of(spec, folder, 0, backend())
    giver = opened_giver(opened, 0, model)
    monkeypatch.setattr(giving, "Thread", NoThread)
    asking = opened.enter_context(closing(Asking([address_of(giver)], TERMS)))
    assert asks(asking, model) is None
    assert "gives no experts" in caplog.text
    assert not giver._asking
