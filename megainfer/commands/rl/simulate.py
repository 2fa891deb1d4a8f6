"""`megainfer rl simulate`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, Typer

from megainfer.commands.help import TopicalCommand
from megainfer.commands.options import takes_options
from megainfer.commands.plan.model import stages_of
from megainfer.commands.plan.options import WeightOptions
from megainfer.commands.plan.values import parse_inventory, parse_tps
from megainfer.commands.whole_number import whole_number
from megainfer.errors import ConfigError

if TYPE_CHECKING:
    from megainfer.planner.search.prediction import Prediction
    from megainfer.rl.simulation.comparison import Assumption, Comparison, Machines
    from megainfer.rl.simulation.setting import Setting

EPILOG = """[bold]Examples[/bold]

What windows would save of a run at the paper's size:

[cyan]megainfer rl simulate mixtral-8x22b --gpus H800:128[/cyan]

Longer answers, without other assumptions beside:

[cyan]megainfer rl simulate path/to/model --gpus H100:64 --mean 12288 --alone[/cyan]"""
MACHINES, ROLLOUT, TRAINING = "Machines", "Answers", "Training"


@dataclass(frozen=True)
class MachineOptions:
    """What draws and trains in turn."""

    gpus: Annotated[
        str,
        Option(
            rich_help_panel=MACHINES,
            metavar="NAME:COUNT,...",
            help="Devices that draw and train in turn, such as H800:128.",
        ),
    ]
    hardware: Annotated[
        Path | None,
        Option(
            rich_help_panel=MACHINES,
            metavar="FILE",
            help="TOML with devices of your own, as `megainfer calibrate` writes it.",
        ),
    ] = None
    tp: Annotated[
        str,
        Option(
            "--tp",
            rich_help_panel=MACHINES,
            metavar="NUMBERS",
            help="How many devices a node may have.",
        ),
    ] = "1,2,4,8"


@dataclass(frozen=True)
class AnswerOptions:
    """What is drawn."""

    prompts: Annotated[
        int, Option(rich_help_panel=ROLLOUT, parser=whole_number, help="Problems a step.")
    ] = 512
    answers: Annotated[
        int, Option(rich_help_panel=ROLLOUT, parser=whole_number, help="Answers to each problem.")
    ] = 16
    most: Annotated[
        int,
        Option(
            rich_help_panel=ROLLOUT, parser=whole_number, help="Tokens after which an answer ends."
        ),
    ] = 24576
    window: Annotated[
        int,
        Option(
            rich_help_panel=ROLLOUT,
            parser=whole_number,
            help="Tokens that a step of T-PPO adds, at most.",
        ),
    ] = 8192
    mean: Annotated[
        int,
        Option(rich_help_panel=ROLLOUT, parser=whole_number, help="Tokens of an answer, in mean."),
    ] = 8192
    sigma: Annotated[
        float,
        Option(
            rich_help_panel=ROLLOUT,
            help="How lengths differ: standard deviation of their logarithm.",
        ),
    ] = 0.8
    prompt: Annotated[
        int, Option(rich_help_panel=ROLLOUT, parser=whole_number, help="Tokens of a problem.")
    ] = 256


@takes_options
def simulate(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="A folder with a config.json, a hub id, or dbrx, mixtral-8x22b, scaled-moe.",
        ),
    ],
    machines: MachineOptions,
    drawn: AnswerOptions,
    weights: WeightOptions,
    utilisation: Annotated[
        float,
        Option(
            rich_help_panel=TRAINING,
            help="Of the devices' arithmetic while models are trained.",
        ),
    ] = 0.4,
    alone: Annotated[
        bool, Option("--alone", help="The setting as it is, without other assumptions beside.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """Find how long a step of T-PPO and of PPO takes, before anyone has the machines.

    Lengths are drawn, decoding and the computing of contexts are timed by the planner's best
    deployment for them, training by its FLOPs. Then one assumption is changed at a time, to see
    which decides.
    """
    from megainfer.planner.hardware import load_devices
    from megainfer.planner.search.space import Space
    from megainfer.rl.simulation.comparison import Machines, assumptions
    from megainfer.rl.simulation.setting import Setting

    setting = Setting(**asdict(drawn), utilisation=utilisation)
    inventory = parse_inventory(machines.gpus, load_devices(machines.hardware))
    own = Machines(stages_of(model, weights), inventory, Space(tps=parse_tps(machines.tp)))
    plan = own.best(setting)
    chosen = list(assumptions(setting))[: 1 if alone else None]
    found = ((assumption.what, _tried(assumption, own)) for assumption in chosen)
    if as_json:
        print(json.dumps(_document(setting, plan, dict(found)), indent=1))
        return
    _print_heading(setting, plan)
    for what, comparison in found:
        _print_line(what, comparison)


def _tried(assumption: "Assumption", machines: "Machines") -> "Comparison | str":
    """Or why it can't be: a quarter of the devices may be too few for the model."""
    from megainfer.rl.simulation.comparison import compare

    try:
        return compare(assumption, machines)
    except ConfigError as error:
        return str(error)


def _document(
    setting: "Setting", plan: "Prediction", found: "Mapping[str, Comparison | str]"
) -> dict[str, Any]:
    return {
        "setting": asdict(setting),
        "deployment": plan.deployment.describe(),
        "replicas": plan.deployment.replicas,
        "comparisons": {what: _fields(each) for what, each in found.items()},
    }


def _fields(found: "Comparison | str") -> dict[str, Any]:
    if isinstance(found, str):
        return {"error": found}
    return {
        "ppo": {**asdict(found.ppo), "seconds": found.ppo.seconds},
        "tppo": {**asdict(found.tppo), "seconds": found.tppo.seconds},
        "step_ratio": found.step_ratio,
        "token_ratio": found.token_ratio,
    }


def _print_heading(setting: "Setting", plan: "Prediction") -> None:
    own = plan.deployment
    print(f"{own.replicas} x {own.describe()}")
    print(
        f"{setting.pool:,} answers of {setting.mean:,} tokens in the mean, at most "
        f"{setting.most:,}; windows of {setting.window:,}\n"
    )
    print(f"{'':36}{'step':>6}{'tokens':>8}   seconds of a step: decoding + contexts + training")


def _print_line(what: str, found: "Comparison | str") -> None:
    """step: PPO's seconds over T-PPO's; tokens: T-PPO's trained in a second over PPO's."""
    if isinstance(found, str):
        print(f"{what:36}{found}", flush=True)
        return
    parts = [
        f"{name} {s.rollout:5.0f} +{s.contexts:4.0f} +{s.training:5.0f} ={s.seconds:5.0f}"
        for name, s in (("PPO", found.ppo), ("T-PPO", found.tppo))
    ]
    ratios = f"{found.step_ratio:6.2f}{found.token_ratio:8.2f}"
    print(f"{what:36}{ratios}   {'   '.join(parts)}", flush=True)


app = Typer(add_completion=False)
app.command(cls=TopicalCommand, epilog=EPILOG)(simulate)
