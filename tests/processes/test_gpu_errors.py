"""What becomes of an error of a GPU: its node ends with one line that names it, is started again
and records its stages anew, and requests see no more of it than a pause.

The GPUs are pretended, and the errors; the processes are real.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.support.chaos.draw import Fault, Shape, Target
from tests.support.chaos.gpus import ILLEGAL
from tests.support.chaos.instance import Instance, write_model
from tests.support.chaos.orders import Order
from tests.support.chaos.runner import Runner
from tests.support.chaos.trial import POOL
from tests.support.chaos.wishes import End, Outcome, mistakes


class Kind(NamedTuple):
    """Whose GPU it is, and how such an instance is started."""

    target: Target
    options: tuple[str, ...]


KINDS = {
    "attention": Kind(Target.ATTENTION, ("--attn-device", "cuda", "--ffn-device", "cpu")),
    "expert": Kind(Target.EXPERT, ("--attn-device", "cpu", "--ffn-device", "cuda")),
    "colocated": Kind(Target.ATTENTION, ("--device", "cuda", "--colocated")),
}
ONE = Shape(1, 1)
WISHES = POOL[:4]
PLACES = ("step", "copy", "event", "capture")
AT_ONCE = {
    *(("attention", "event"), ("attention", "capture")),
    *(("expert", "step"), ("expert", "capture")),
    ("colocated", "capture"),
}
"""The others are slow: an instance each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[Target, Instance]]:
    target, options = KINDS[request.param]
    instance = Instance(model, ONE, (*options, "--max-num-seqs", "4"), gpus=1)
    try:
        assert instance.wait_until_ready(), instance.served.output
        yield target, instance
    finally:
        instance.close()


def asked(model: Path, instance: Instance) -> list[Outcome]:
    outcomes = [Outcome(wish) for wish in WISHES]
    Runner(model).ask(instance, outcomes)
    assert all(outcome.end is End.DONE for outcome in outcomes), instance.served.output
    return outcomes


@pytest.mark.parametrize(
    ("instance", "place"),
    [
        pytest.param(
            kind,
            place,
            marks=() if (kind, place) in AT_ONCE else pytest.mark.slow,
            id=f"{kind}-{place}",
        )
        for kind in KINDS
        for place in PLACES
    ],
    indirect=["instance"],
)
def test_an_error_of_a_gpu_ends_its_node_which_comes_back(
    model: Path, instance: tuple[Target, Instance], place: str
) -> None:
    target, served = instance
    expected = asked(model, served)
    before = len(served.served.output)
    if place == "capture":  # which is done while it starts, so it has to die before
        orders = [
            Order(Fault.CUDA, target, "step", 10, 0),
            Order(Fault.CUDA, target, place, 2, 0, new=True),
        ]
    else:
        orders = [Order(Fault.CUDA, target, place, 10, 0)]
    count = served.board.give(*orders)
    for outcome, known in zip(asked(model, served), expected, strict=True):
        assert mistakes(outcome, known.answer, moved=True) == []
    served.wait_until_back()
    assert served.awaited() == []
    assert len(served.board.done(count)) == len(orders), "they were to be carried out"
    output = served.served.output[before:]
    deaths = re.findall(rf"{target} node 0 \(process \d+\) died: (.*); it is started", output)
    assert len(deaths) == len(orders), output
    for death in deaths:
        assert re.fullmatch(
            rf"GPU 0 \(NVIDIA H200\) failed, which was noticed( at .*)?: {ILLEGAL}", death
        )
    assert "Traceback" not in output
    assert f"{target} node 0 is back after" in output
    told = httpx.get(f"{served.url}/metrics", trust_env=False, timeout=60).text
    graphs = re.search(rf'^megainfer:graphs{{.*role="{target}".*}} ([\d.]+)$', told, re.MULTILINE)
    assert graphs is not None
    assert float(graphs[1]) > 0, "its stages are recorded again"
