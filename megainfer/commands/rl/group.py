"""Commands that are loaded when they are asked for: their flags are made from a configuration,
which would take longer than all other commands' together, whichever is run."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = ("train", "simulate")
"""Each is a module beside this one, whose `app` has one command."""


class LazyGroup(TyperGroup):
    """`megainfer rl`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"megainfer.commands.rl.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command
