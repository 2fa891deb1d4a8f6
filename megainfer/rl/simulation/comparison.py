"""T-PPO beside PPO on the same machines, and what becomes of it under other assumptions."""

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace

from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.planning import Planner
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.space import Space
from megainfer.planner.search.workload import Target, Workload
from megainfer.rl.simulation.arithmetic import Arithmetic
from megainfer.rl.simulation.engine import DecodeTimes, FlatEngine, LinearEngine, PlannedEngine
from megainfer.rl.simulation.setting import Setting
from megainfer.rl.simulation.steps import Spent, Training, mean_step


@dataclass(frozen=True, slots=True)
class Machines:
    """What draws and trains, in turn. Raises ConfigError where the model fits nowhere."""

    stages: ModelStages
    inventory: Inventory
    space: Space
    _plans: dict[Hashable, Prediction] = field(default_factory=dict, repr=False, compare=False)

    def best(self, setting: Setting) -> Prediction:
        """The deployment with most tokens a second for answers of these lengths."""
        workload = _workload(setting)
        key = workload, tuple((device.name, count) for device, count in self.inventory.stock)
        if key not in self._plans:
            planner = Planner.of(self.stages, self.inventory, workload, self.space)
            answer = planner.plan(Target(math.inf), top=1)
            found = (*answer.apart, *answer.together)
            self._plans[key] = max(found, key=lambda plan: plan.tokens_per_second)
        return self._plans[key]

    def engine(self, setting: Setting) -> PlannedEngine:
        """That deployment, drawing."""
        return PlannedEngine(self.stages, self.best(setting).deployment, _workload(setting))

    def training(self, setting: Setting) -> Training:
        """All devices in the arithmetic of bfloat16."""
        rate = sum(device.rate("bfloat16") * count for device, count in self.inventory.stock)
        return Training(Arithmetic(self.stages.model), rate * setting.utilisation)

    def times(self, factor: float) -> "Machines":
        """So many times as many devices, at least one of each."""
        stock = [(device, max(1, round(n * factor))) for device, n in self.inventory.stock]
        return replace(self, inventory=Inventory(tuple(stock)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A step of each."""

    ppo: Spent
    tppo: Spent

    @property
    def step_ratio(self) -> float:
        """How much longer PPO's step takes; T-PPO's trains fewer tokens."""
        return self.ppo.seconds / self.tppo.seconds

    @property
    def token_ratio(self) -> float:
        """How many times as many tokens T-PPO trains in a second."""
        return self.tppo.tokens_per_second / self.ppo.tokens_per_second


def _as_planned(engine: DecodeTimes) -> DecodeTimes:
    return engine


@dataclass(frozen=True, slots=True)
class Assumption:
    """machines: how many times as many devices. engine: from the planned one to what is assumed."""

    what: str
    setting: Setting
    machines: float = 1.0
    engine: Callable[[DecodeTimes], DecodeTimes] = _as_planned


def compare(assumption: Assumption, machines: Machines) -> Comparison:
    """Both algorithms, in a steady state. Raises ConfigError where the model fits nowhere."""
    setting, own = assumption.setting, machines.times(assumption.machines)
    engine = assumption.engine(own.engine(setting))
    training = own.training(setting)
    ppo = mean_step(setting, setting.most, engine, training)
    tppo = mean_step(setting, min(setting.window, setting.most), engine, training)
    return Comparison(ppo, tppo)


def _workload(setting: Setting) -> Workload:
    return Workload(setting.prompt, setting.mean, spread=setting.lengths.spread)


def assumptions(setting: Setting) -> Iterator[Assumption]:
    """The setting as it is, then with one thing changed at a time."""
    yield Assumption("as it is", setting)
    for window in (setting.window // 4, setting.window // 2, setting.window * 2):
        if 1 <= window < setting.most:
            yield Assumption(f"windows of {window:,}", replace(setting, window=window))
    for mean in (setting.mean // 2, setting.mean * 3 // 2):
        if 1 <= mean < setting.most:
            yield Assumption(f"answers of {mean:,} in the mean", replace(setting, mean=mean))
    for sigma in (0.4, 1.2):
        yield Assumption(f"lengths with sigma {sigma:g}", replace(setting, sigma=sigma))
    for times, words in ((0.25, "a quarter of the devices"), (4.0, "four times the devices")):
        yield Assumption(words, setting, machines=times)
    yield Assumption("earlier windows' keys kept", replace(setting, keeps_prefixes=True))
    yield Assumption("training at full arithmetic", replace(setting, utilisation=1.0))
    yield Assumption("a step as long for few answers", setting, engine=FlatEngine)
    yield Assumption("a step in proportion to answers", setting, engine=LinearEngine)
