"""What docs/failure.md promises, each promise by one fault at one exact place."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.chaos.draw import Fault, Shape, Target
from tests.support.chaos.instance import Instance, write_model
from tests.support.chaos.orders import Order
from tests.support.chaos.runner import Runner
from tests.support.chaos.trial import LONG_POOL, POOL, Answers
from tests.support.chaos.wishes import KINDS, End, Outcome

SEVERAL, REPLICATED, ONE = Shape(2, 2), Shape(2, 2, replicas=4), Shape(1, 1)
ONE_OF_EACH = [Target.EXPERT, pytest.param(Target.ATTENTION, marks=pytest.mark.slow)]
ONE_OF_A_KIND = POOL[: len(KINDS)]
STAYS_AWAY = 3
"""So many deaths while loading keep a node away for 3.5 s: pauses between restarts double."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[Runner]:
    runner = Runner(model, wishes=ONE_OF_A_KIND)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def network_runner(model: Path) -> Iterator[Runner]:
    """Whose nodes are joined as those of several hosts are."""
    runner = Runner(model, ["--m2n", "dist"], ONE_OF_A_KIND)
    yield runner
    runner.close()


@contextmanager
def instance_of(model: Path, shape: Shape, *options: str, **more: str) -> Iterator[Instance]:
    instance = Instance(model, shape, options, **more)
    try:
        assert instance.wait_until_ready(), instance.served.output
        yield instance
    finally:
        instance.close()


def dies(target: Target, node: int, place: str = "step", nth: int = 10) -> Order:
    return Order(Fault.KILL, target, place, nth, node)


def dies_while_it_loads(target: Target, times: int) -> list[Order]:
    """Each time that it comes back."""
    return [Order(Fault.UNREADABLE, target, "load", new=True)] * times


def answers_under(runner: Runner, shape: Shape, *orders: Order, moved: bool = False) -> Instance:
    """One request of each kind, while these orders are carried out: nobody sees more of it than a
    pause. Returns the instance, which rests again."""
    instance, answers = runner.at_rest(shape), runner.answers(shape)
    outcomes = [Outcome(wish) for wish in ONE_OF_A_KIND]
    count = instance.board.give(*orders)
    runner.ask(instance, outcomes)
    assert len(instance.board.done(count)) == len(orders), "they were to be carried out"
    for outcome in outcomes:
        assert outcome.end is End.DONE, outcome
        assert answers.judge(outcome, moved) == []
    assert instance.settle() == []
    return instance


def ask(runner: Runner, instance: Instance, count: int = 1) -> Sequence[Outcome]:
    outcomes = [Outcome(wish) for wish in POOL[:count]]
    runner.ask(instance, outcomes)
    return outcomes


def test_every_kind_of_request_goes_on_at_another_attention_node(runner: Runner) -> None:
    answers_under(runner, SEVERAL, dies(Target.ATTENTION, 0))


def test_every_kind_of_request_waits_for_an_expert_node(runner: Runner) -> None:
    answers_under(runner, SEVERAL, dies(Target.EXPERT, 1))


def test_both_at_once(runner: Runner) -> None:
    answers_under(runner, SEVERAL, dies(Target.EXPERT, 1), dies(Target.ATTENTION, 1))


def test_one_that_dies_again_while_it_loads(runner: Runner) -> None:
    orders = [dies(Target.EXPERT, 0), *dies_while_it_loads(Target.EXPERT, 1)]
    answers_under(runner, SEVERAL, *orders)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        pytest.param(Target.ATTENTION, Fault.STOP, id="attention-stopped"),
        pytest.param(Target.EXPERT, Fault.STUCK, id="expert-stuck"),
        pytest.param(Target.EXPERT, Fault.STOP, id="expert-stopped", marks=pytest.mark.slow),
        pytest.param(Target.ATTENTION, Fault.STUCK, id="attention-stuck", marks=pytest.mark.slow),
    ],
)
def test_one_that_hangs_is_given_up(runner: Runner, target: Target, fault: Fault) -> None:
    instance = runner.at_rest(SEVERAL)
    before = len(instance.served.output)
    answers_under(runner, SEVERAL, Order(fault, target, "step", 10, 0))
    output = instance.served.output[before:]
    why = "it has not shown any life" if fault is Fault.STOP else "its work should have been done"
    assert why in output
    assert f"{target} node 0 is back after" in output


@pytest.mark.parametrize("target", [Target.ATTENTION, Target.EXPERT])
def test_one_that_is_slow_is_not(runner: Runner, target: Target) -> None:
    instance = runner.at_rest(SEVERAL)
    before = len(instance.served.output)
    answers_under(runner, SEVERAL, Order(Fault.SLOW, target, "step", 10, 0))
    assert "hangs" not in instance.served.output[before:]
    assert "died" not in instance.served.output[before:]


def test_a_lost_connection_between_two_nodes_is_made_anew(runner: Runner) -> None:
    instance = runner.at_rest(SEVERAL)
    before = len(instance.served.output)
    answers_under(runner, SEVERAL, Order(Fault.LINK, Target.EXPERT, "step", 10, 1, variant=2))
    assert "has lost its connection to expert node 1" in instance.served.output[before:]


@pytest.mark.parametrize(
    ("fault", "target"),
    [
        pytest.param(Fault.KILL, Target.EXPERT, id="expert-killed"),
        pytest.param(Fault.KILL, Target.ATTENTION, id="attention-killed"),
        pytest.param(Fault.STOP, Target.EXPERT, id="expert-stopped"),
        pytest.param(Fault.STOP, Target.ATTENTION, id="attention-stopped"),
    ],
)
def test_over_a_network_the_same_is_promised(
    network_runner: Runner, fault: Fault, target: Target
) -> None:
    instance = network_runner.at_rest(SEVERAL)
    before = len(instance.served.output)
    answers_under(network_runner, SEVERAL, Order(fault, target, "step", 10, 0))
    assert f"{target} node 0 is back after" in instance.served.output[before:]


def test_over_a_network_a_lost_connection_is_made_anew(network_runner: Runner) -> None:
    instance = network_runner.at_rest(SEVERAL)
    before = len(instance.served.output)
    link = Order(Fault.LINK, Target.EXPERT, "step", 10, 1, variant=2)
    answers_under(network_runner, SEVERAL, link)
    assert "has lost its connection to expert node 1" in instance.served.output[before:]


def test_with_replicas_requests_are_served_before_an_expert_node_is_back(model: Path) -> None:
    runner = Runner(model, wishes=ONE_OF_A_KIND)
    try:
        orders = [dies(Target.EXPERT, 0), *dies_while_it_loads(Target.EXPERT, STAYS_AWAY)]
        instance, answers = runner.at_rest(REPLICATED), runner.answers(REPLICATED)
        instance.board.give(*orders)
        for outcome in ask(runner, instance, len(KINDS)):
            assert outcome.end is End.DONE, outcome
            assert answers.judge(outcome, moved=True) == []
        assert instance.settle() == []
        output = instance.served.output
        assert output.index("requests are served again") < output.index("expert node 0 is back")
    finally:
        runner.close()


@pytest.mark.parametrize("target", ONE_OF_EACH)
def test_waiting_has_an_end_that_names_the_node(model: Path, target: Target) -> None:
    runner = Runner(model)
    with instance_of(model, ONE, "--recovery-timeout", "1") as instance:
        again = dies_while_it_loads(target, STAYS_AWAY)
        instance.board.give(dies(target, 0), *again)
        (outcome,) = ask(runner, instance)
        assert outcome.end is End.ERROR
        assert f"{target} node 0 died" in outcome.text
        assert "was not back within 1 s" in outcome.text
        assert instance.settle() == []
        (outcome,) = ask(runner, instance)
        assert outcome.end is End.DONE


@pytest.mark.parametrize("target", ONE_OF_EACH)
def test_a_crash_loop_ends_and_says_why(model: Path, target: Target) -> None:
    with instance_of(model, ONE, restarts="2/300") as instance:
        instance.board.give(dies(target, 0), *dies_while_it_loads(target, 5))
        (outcome,) = ask(Runner(model), instance)
        assert outcome.end is End.ERROR
        assert instance.served.end() == 1
        assert instance.left_behind() == []
        output = " ".join(instance.served.output.split())
        assert f"{target} node 0" in output
        assert "model.safetensors can't be read: chaos" in output, "its last words"
        assert "it was started again 2 times within 300 s" in output


@pytest.mark.parametrize("place", [pytest.param("load", marks=pytest.mark.slow), "warm-up"])
@pytest.mark.parametrize("target", ONE_OF_EACH)
def test_one_that_is_killed_during_the_first_start_is_started_again(
    model: Path, target: Target, place: str
) -> None:
    instance = Instance(model, ONE, orders=[dies(target, 0, place, 1)])
    try:
        assert instance.wait_until_ready(), instance.served.output
        assert len(instance.board.done(1)) == 1
        assert instance.settle() == []
    finally:
        instance.close()


def test_a_node_that_dies_while_draining_does_not_end_the_drain(model: Path) -> None:
    runner, answers = Runner(model), Answers(lambda wish: [], LONG_POOL[:1])
    with instance_of(model, ONE) as instance:
        answers.learn(instance)
        drains = Order(Fault.KILL, Target.ATTENTION, "step", 20, 0)
        instance.board.give(drains)
        outcomes = [Outcome(wish) for wish in LONG_POOL[:1]]
        with runner.asking(instance, outcomes):
            instance.served.process.send_signal(signal.SIGTERM)
        assert outcomes[0].end is End.DONE, outcomes
        assert answers.judge(outcomes[0], moved=False) == []
        assert instance.served.end() == 0
        assert instance.left_behind() == []


def test_an_api_server_whose_loop_is_stuck_is_started_again(model: Path) -> None:
    runner = Runner(model)
    with instance_of(model, ONE) as instance:
        instance.board.give(Order(Fault.STUCK, Target.SERVER, "step", 3, 0))
        (outcome,) = ask(runner, instance)
        assert outcome.end is not End.DONE
        assert instance.settle() == []
        assert "its work should have been done" in instance.served.output
        (outcome,) = ask(runner, instance)
        assert outcome.end is End.DONE
