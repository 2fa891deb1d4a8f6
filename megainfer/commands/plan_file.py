"""`--plan FILE`: options out of what `megainfer plan --json` wrote."""

from pathlib import Path
from typing import Annotated

import typer

from megainfer.errors import ConfigError, cited


def apply_plan(context: typer.Context, path: Path | None) -> Path | None:
    """Make the plan's values the defaults of the command's options. Raises ConfigError: the file
    is no plan, or what it plans isn't served yet."""
    if path is not None:
        from megainfer.planner.report.document import read_served

        options = {name.replace("-", "_"): value for name, value in read_served(path).items()}
        if unknown := options.keys() - {parameter.name for parameter in context.command.params}:
            raise ConfigError(f"--plan {path}: there is no option {cited(min(unknown))}")
        defaults = {
            name: value if isinstance(value, bool) else str(value)
            for name, value in options.items()
        }
        context.default_map = {**(context.default_map or {}), **defaults}
    return path


PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        is_eager=True,
        callback=apply_plan,
        help="What `megainfer plan --json` wrote: its best plan; the command line wins over it.",
    ),
]
