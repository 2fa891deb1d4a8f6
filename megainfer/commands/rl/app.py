"""`megainfer rl`: its own commands by name."""

import typer

from megainfer.commands.help import TopicalCommand
from megainfer.commands.rl import train

rl_app = typer.Typer(
    no_args_is_help=True,
    help="Reinforcement learning, whose rollouts run on the nodes that serve.",
    rich_markup_mode="rich",
)


@rl_app.callback()
def common() -> None:
    """Reinforcement learning, whose rollouts run on the nodes that serve."""


rl_app.command(cls=TopicalCommand, epilog=train.EPILOG)(train.train)
