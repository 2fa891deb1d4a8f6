"""`megainfer version` and `megainfer --version`."""

from importlib.metadata import version as package_version

import typer


def version() -> None:
    """Print the version."""
    print(package_version("megainfer"))


def show_version(asked: bool) -> None:
    """Print it and end, where that was asked."""
    if asked:
        version()
        raise typer.Exit
