"""`--help`: options by topic, whole names at any width, brackets as they are written."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

NAMES_WIDTH = 28
"""Longer names have a line of their own."""
WIDEST = 100
ARGUMENTS, OTHER = "Arguments", "Options"


class TopicalCommand(TyperCommand):
    """A command whose help this module writes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """To standard output, as typer's own does."""
        console = Console(highlight=False)
        console.width = min(console.width, WIDEST)
        console.print(f"\n[bold]Usage:[/bold] {ctx.command_path} ", end="")
        console.print(" ".join(self.collect_usage_pieces(ctx)), markup=False)
        for paragraph in (self.help or "").split("\n\n"):
            console.print("\n", " ".join(paragraph.split()), markup=False, sep="")
        for title, records in self._topics(ctx).items():
            console.print(f"\n[bold]{title}[/bold]")
            for names, text in records:
                _print_option(console, names, text)
        if self.epilog:
            console.print(f"\n{self.epilog}\n")

    def _topics(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """(names, help) of what is to be shown, in the order of declaration."""
        topics: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                names, text = record
                kind = ARGUMENTS if parameter.param_type_name == "argument" else OTHER
                title = getattr(parameter, "rich_help_panel", None) or kind
                # typer escapes brackets for a reader of markup, which there is none of here.
                topics.setdefault(title, []).append((names, text.replace("\\[", "[")))
        return {title: records for title, records in topics.items() if records}


def _print_option(console: Console, names: str, text: str) -> None:
    name = Text(names, style="cyan")
    if len(names) > NAMES_WIDTH:
        console.print(Padding(name, (0, 0, 0, 2)))
        name = Text()
    row = Table.grid(padding=(0, 2))
    row.add_column(width=NAMES_WIDTH)
    row.add_column()
    row.add_row(name, Text(text))
    console.print(Padding(row, (0, 0, 0, 2)))
