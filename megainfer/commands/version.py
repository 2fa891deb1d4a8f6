"""`megainfer version`."""

from importlib.metadata import version as package_version


def version() -> None:
    """Print the version."""
    print(package_version("megainfer"))
