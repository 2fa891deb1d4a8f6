"""`megainfer rl train`."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, Typer

from megainfer.commands.config_file import read_options
from megainfer.commands.help import TopicalCommand
from megainfer.commands.rl.flags import flags_of, merged
from megainfer.errors import ConfigError
from megainfer.rl.config.train_config import TrainConfig

if TYPE_CHECKING:
    from megainfer.rl.ranks.ranks import Ranks

EPILOG = """[bold]Examples[/bold]

[cyan]megainfer rl train run.yaml[/cyan]

The same problems with another algorithm, beside it:

[cyan]megainfer rl train run.yaml --algorithm ppo --run.output runs/ppo[/cyan]

[cyan]megainfer rl train run.yaml --resume[/cyan]"""

FLAGS = {flag.parameter: flag for flag in flags_of(TrainConfig)}


def train(config: Path | None, resume: bool, **given: Any) -> None:
    """Train a model by reinforcement learning on problems whose answers can be checked.

    CONFIG is YAML; every key of it is a flag too, which wins over the file. Ctrl-C ends the run
    after the step and saves it. On several devices: torchrun --nproc-per-node 2 -m megainfer rl
    train CONFIG.
    """
    values = {} if config is None else read_options(config, "CONFIG")
    run_training(TrainConfig.of(merged(values, FLAGS, given)), resume)


def run_training(config: TrainConfig, resume: bool) -> None:
    """Until its last step, or an interrupt; of several ranks by each."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError("rl train needs transformers: pip install 'megainfer[rl]'") from error

    from megainfer.rl.ranks.ranks import joined
    from megainfer.rl.training.led_learner import follow

    logging.set_verbosity_error()  # a value model has no output layer, and needn't
    logging.disable_progress_bar()
    with joined(config.compute.device) as ranks:
        if ranks.first:
            _lead(config, resume, ranks)
        else:
            follow(config, ranks)


def _lead(config: TrainConfig, resume: bool, ranks: "Ranks") -> None:
    from contextlib import closing

    from rich.console import Console

    from megainfer.commands.rl.progress import StepBar, WatchedEngine
    from megainfer.commands.rl.report import StepLines
    from megainfer.rl.rollout.disaggregated import DisaggregatedEngine
    from megainfer.rl.run.run import Run

    console = Console(highlight=False)
    lines, bar = StepLines(console, config.run.steps), StepBar(console)
    rollout = config.rollout

    def open_engine(folder: Path) -> WatchedEngine:
        return WatchedEngine(
            DisaggregatedEngine(folder, rollout.engine, rollout.replay_routing), bar
        )

    with bar.live, closing(Run(config, resume, open_engine, lines.show, lines.say, ranks)) as run:
        run.steps()


def _signature() -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    config = Annotated[Path | None, Argument(metavar="CONFIG", help="YAML with any of the keys.")]
    resume = Annotated[bool, Option("--resume", help="Go on from the newest checkpoint.")]
    own = [
        inspect.Parameter("config", keyword, default=None, annotation=config),
        inspect.Parameter("resume", keyword, default=False, annotation=resume),
    ]
    return inspect.Signature([*own, *(flag.option() for flag in FLAGS.values())])


# Where typer looks for options, of which there is one for each key.
train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {
    name: parameter.annotation for name, parameter in _signature().parameters.items()
}

app = Typer(add_completion=False)
app.command(cls=TopicalCommand, epilog=EPILOG)(train)
