"""`megainfer models`."""

from typing import Annotated

import typer

EPILOG = """[bold]Examples[/bold]

  megainfer models                     the families, with models that people run

  megainfer models ~/models/Qwen3-30B  what one is made of, and whether it can be served
"""


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, or its name on the hub; all families if left out.",
        ),
    ] = None,
) -> None:
    """List the models that can be served, or tell what one is made of.

    Of a model only config.json is read; `serve --dry-run` looks at its weights too.
    """
    from rich.console import Console
    from rich.table import Table

    from megainfer.model_folder.resolve import resolve_config
    from megainfer.models.description import describe_model
    from megainfer.models.quantization import quantization_of
    from megainfer.models.registry import FAMILIES, load_spec

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    if model is None:
        for family in sorted(FAMILIES, key=lambda family: family.title):
            table.add_row(f"[bold]{family.title}[/bold]", family.models)
    else:
        folder = resolve_config(model)
        for label, text in describe_model(load_spec(folder), quantization_of(folder)):
            table.add_row(f"[bold]{label}[/bold]", text)
    console.print(table)
