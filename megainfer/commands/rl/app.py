"""`megainfer rl`: its own commands by name."""

import typer

from megainfer.commands.rl.group import LazyGroup

rl_app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    help="Reinforcement learning, whose rollouts run on the nodes that serve.",
    rich_markup_mode="rich",
)


@rl_app.callback()
def common() -> None:
    """Reinforcement learning, whose rollouts run on the nodes that serve."""
