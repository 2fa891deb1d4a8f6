"""Steps of training that are simulated: rollouts by hand, pools in a steady state, the command."""

import json
from dataclasses import dataclass, field, replace

import pytest
from typer.testing import CliRunner

from megainfer.commands.plan.model import stages_of
from megainfer.commands.plan.options import WeightOptions
from megainfer.commands.plan.values import parse_inventory
from megainfer.commands.rl import simulate
from megainfer.errors import ConfigError
from megainfer.planner.hardware import load_devices
from megainfer.planner.search.space import Space
from megainfer.rl.simulation.arithmetic import Arithmetic
from megainfer.rl.simulation.comparison import Assumption, Machines, assumptions, compare
from megainfer.rl.simulation.engine import FlatEngine, LinearEngine
from megainfer.rl.simulation.rollout import QUANTUM, Growth, roll
from megainfer.rl.simulation.setting import Setting
from megainfer.rl.simulation.steps import Training, mean_step

SMALL = Setting(prompts=16, answers=4, most=4096, window=1024, mean=1024, sigma=1.0)


@dataclass
class HandEngine:
    """A step takes `flat` seconds and `each` for every answer; a token of a context 1 second."""

    places: int
    flat: float = 1.0
    each: float = 0.0
    contexts: list[tuple[float, float]] = field(default_factory=list)

    def decode_seconds(self, running: float, context: float) -> float:
        self.contexts.append((running, context))
        return self.flat + self.each * running

    def prefill_seconds(self, tokens: float, context: float) -> float:
        return tokens


@pytest.fixture(scope="module")
def machines() -> Machines:
    stages = stages_of("mixtral-8x22b", WeightOptions())
    return Machines(stages, parse_inventory("H800:32", load_devices(None)), Space(tps=(4,)))


def test_a_rollout_lasts_as_long_as_its_longest_answer() -> None:
    growths = [Growth(10, 100), Growth(20, 30), Growth(0, 1)]
    rolled = roll(growths, HandEngine(places=3))
    assert (rolled.seconds, rolled.decode_steps, rolled.tokens) == (100.0, 100, 131)
    assert rolled.occupancy(places=3) == pytest.approx(131 / 300)


def test_answers_leave_their_places_and_others_take_them() -> None:
    growths = [Growth(5, 2 * QUANTUM), Growth(5, QUANTUM), Growth(7, 3 * QUANTUM)]
    engine = HandEngine(places=2, flat=0.0, each=1.0)
    rolled = roll(growths, engine)
    assert rolled.decode_steps == 4 * QUANTUM, "the third waits for the second"
    assert rolled.seconds == rolled.tokens == 6 * QUANTUM
    half = QUANTUM / 2
    assert engine.contexts == [
        (2, 5 + half),
        (2, (5 + 7 + QUANTUM) / 2 + half),
        (1, 7 + QUANTUM + half),
        (1, 7 + 2 * QUANTUM + half),
    ]


def test_answers_of_one_length_are_counted_by_hand(machines: Machines) -> None:
    """All go through their two windows together: half of the steps end all, half none."""
    setting = replace(SMALL, sigma=0.0, most=4096, mean=512, window=256, prompt=100)
    rate = 1e15
    arithmetic = Arithmetic(machines.stages.model)
    step = mean_step(setting, 256, HandEngine(places=64), Training(arithmetic, rate))
    assert (step.rollout, step.decode_steps, step.tokens) == (256.0, 256.0, 64 * 256.0)
    assert (step.finished, step.occupancy) == (32.0, 1.0)
    again, prompts = 64 * (100 + 256), 16 * 100
    assert step.contexts == (again + prompts) / 2
    first, whole = arithmetic.forward_flops(356), arithmetic.forward_flops(612)
    head = arithmetic.head_flops(64 * 256)
    flops = (4 * 64 * (first + whole) + 3 * 64 * whole) / 2 + 3 * head
    assert step.training == pytest.approx(flops / rate)
    kept = replace(setting, keeps_prefixes=True)
    step = mean_step(kept, 256, HandEngine(places=64), Training(arithmetic, rate))
    assert step.contexts == prompts / 2


def test_a_steady_pool_ends_as_many_answers_as_it_has_tokens_for(machines: Machines) -> None:
    training = Training(Arithmetic(machines.stages.model), 1e15)
    setting = replace(SMALL, prompts=128, seed=3)
    cut = mean_step(setting, 1024, HandEngine(places=10**6), training)
    whole = mean_step(setting, setting.most, HandEngine(places=10**6), training)
    assert whole.finished == 512
    assert whole.tokens / whole.finished == pytest.approx(1024, rel=0.1)
    assert cut.tokens / cut.finished == pytest.approx(1024, rel=0.1)
    assert cut.finished < 512
    assert cut.decode_steps == 1024


def test_flops_are_those_of_the_models_products(machines: Machines) -> None:
    """Of Mixtral 8x22B: 56 layers, 6144 wide, 48 heads of 128 and 8 for keys, 2 of 8 experts."""
    tokens = 512
    attention = 6144 * 128 * (48 + 8 + 8) + 48 * 128 * 6144
    experts = 2 * 3 * 6144 * 16384 + 6144 * 8
    seen = 4 * 48 * 128 * tokens * (tokens + 1) / 2
    expected = 56 * (2 * tokens * (attention + experts) + seen)
    arithmetic = Arithmetic(machines.stages.model)
    assert arithmetic.forward_flops(tokens) == pytest.approx(expected)
    assert arithmetic.texts_flops([tokens, 256]) > expected
    assert arithmetic.head_flops(3) == 2 * 3 * 6144 * 32000


def test_the_planned_engine_is_the_planners(machines: Machines) -> None:
    engine = machines.engine(SMALL)
    plan = machines.best(SMALL)
    assert engine.places == plan.deployment.replicas * plan.deployment.batch
    context = SMALL.prompt + SMALL.mean
    full = engine.decode_seconds(engine.places, context)
    assert 0.5 * plan.tpot_seconds < full <= plan.tpot_seconds, "which also computes prompts"
    counts = [engine.decode_seconds(n, context) for n in (1, engine.places // 4, engine.places)]
    assert counts == sorted(counts)
    assert counts[0] > full / 20, "weights are read for one answer too"
    assert engine.decode_seconds(8, 8 * context) > engine.decode_seconds(8, context)
    assert engine.prefill_seconds(4096, 2048) == pytest.approx(
        2 * engine.prefill_seconds(2048, 2048)
    )
    assert engine.prefill_seconds(4096, 8192) > engine.prefill_seconds(4096, 1024)
    flat, linear = FlatEngine(engine), LinearEngine(engine)
    assert flat.decode_seconds(1, context) == full
    assert linear.decode_seconds(engine.places / 2, context) == full / 2


def test_what_windows_save_depends_on_what_few_answers_cost(machines: Machines) -> None:
    usual, kept, longer, flat, linear = (
        compare(next(each for each in assumptions(SMALL) if each.what == what), machines)
        for what in (
            "as it is",
            "earlier windows' keys kept",
            "windows of 2,048",
            "a step as long for few answers",
            "a step in proportion to answers",
        )
    )
    assert usual.step_ratio > 1
    assert linear.token_ratio < min(1.0, usual.token_ratio), "only costs are left of windows"
    assert flat.token_ratio > linear.token_ratio
    assert kept.tppo.contexts < usual.tppo.contexts
    assert longer.tppo.contexts < usual.tppo.contexts
    whole = compare(Assumption("whole", replace(SMALL, window=SMALL.most)), machines)
    assert whole.ppo == whole.tppo
    assert whole.step_ratio == whole.token_ratio == 1


def test_the_command(machines: Machines) -> None:
    sizes = ["--prompts", "16", "--answers", "4", "--most", "4096", "--mean", "1024"]
    rest = ["--window", "1024", "--sigma", "1.0", "--tp", "4"]
    arguments = ["mixtral-8x22b", "--gpus", "H800:32", *sizes, *rest, "--alone"]
    result = CliRunner().invoke(simulate.app, [*arguments, "--json"], catch_exceptions=False)
    told = json.loads(result.output)["comparisons"]["as it is"]
    expected = compare(Assumption("as it is", SMALL), machines)
    assert told["step_ratio"] == expected.step_ratio
    assert told["tppo"]["seconds"] == expected.tppo.seconds
    text = CliRunner().invoke(simulate.app, arguments, catch_exceptions=False).output
    assert "64 answers of 1,024 tokens in the mean, at most 4,096; windows of 1,024" in text
    assert f"{expected.step_ratio:6.2f}{expected.token_ratio:8.2f}" in text


def test_an_assumption_that_the_machines_are_too_small_for_is_named() -> None:
    sizes = ["--prompts", "1", "--answers", "1", "--most", "512", "--mean", "256"]
    rest = ["--window", "128", "--tp", "4", "--json"]
    arguments = ["mixtral-8x22b", "--gpus", "H800:8", *sizes, *rest]
    result = CliRunner().invoke(simulate.app, arguments, catch_exceptions=False)
    told = json.loads(result.output)["comparisons"]
    assert "no node of 4 devices can be made of 2 H800" in told["a quarter of the devices"]["error"]
    assert told["as it is"]["step_ratio"] > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"mean": 4096}, "must have room for longer ones: they end at 4096"),
        ({"utilisation": 1.5}, "utilisation must be above 0 and at most 1, not 1.5"),
    ],
)
def test_a_setting_that_cant_be_is_named(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changed)
