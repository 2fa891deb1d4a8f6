"""Libraries that the build compiles into the package: plain C interfaces, loaded through ctypes."""

import ctypes
import importlib.machinery
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError

Functions = Mapping[str, tuple[Any, Any]]
"""name -> (ctypes type of the result, list of its arguments')"""


def find_library(folder: Path) -> Path | None:
    """Where the build has put `folder`'s library; None if there was no compiler."""
    candidates = (folder / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def load_library(folder: Path, functions: Functions, what: str, otherwise: str) -> ctypes.CDLL:
    """`folder`'s library, its functions typed.

    what: it holds, and what to do `otherwise`, for the text of errors. Raises ConfigError when it
    was not built, or from older sources than these.
    """
    path = find_library(folder)
    if path is None:
        raise ConfigError(
            f"{what} are not built; install a C++ compiler and reinstall, or {otherwise}"
        )
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in functions.items():
        function = getattr(library, name, None)
        if function is None:
            raise ConfigError(f"{path} has no {name}: it is older than this package; reinstall")
        function.restype, function.argtypes = result, list(arguments)
    return library
