"""Where the peers live: an environment of its own for each, under one folder."""

import shlex
import subprocess
import sys
from pathlib import Path

PEERS = "vllm", "llamacpp", "transformers"
TORCH = "torch==2.13.0"
"""First and exactly: a range could bring another build of it."""
READY = "ready.txt"


class PreparationError(Exception):
    """A peer isn't there or can't be made; the message says what to do."""


def python_of(folder: Path, peer: str) -> Path:
    """Raises PreparationError where this peer was not prepared in `folder`."""
    if not (folder / peer / READY).exists():
        raise PreparationError(
            f"{peer} is not prepared in {folder}; run: python benchmarks/prepare_peers.py "
            f"--folder {shlex.quote(str(folder))} {peer}"
        )
    return venv_python(folder, peer)


def venv_python(folder: Path, peer: str) -> Path:
    return folder / peer / "venv" / "bin" / "python"


def make_environment(folder: Path, peer: str) -> None:
    """With this process's Python."""
    if not venv_python(folder, peer).exists():
        run(sys.executable, "-m", "venv", folder / peer / "venv")


def install(folder: Path, peer: str, *requirements: str) -> None:
    run(venv_python(folder, peer), "-m", "pip", "install", "--quiet", *requirements)


def run(*command: str | Path) -> str:
    """Its standard output. Raises PreparationError with its last words."""
    words = [str(part) for part in command]
    try:
        finished = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise PreparationError(f"{words[0]} is needed, and isn't installed") from None
    if finished.returncode:
        last = "\n".join((finished.stdout + finished.stderr).splitlines()[-15:])
        raise PreparationError(f"{shlex.join(words)} ended with {finished.returncode}:\n{last}")
    return finished.stdout


def is_ready(folder: Path, peer: str, recipe: str) -> bool:
    """Whether it was made by this recipe."""
    marker = folder / peer / READY
    return marker.exists() and marker.read_text() == recipe


def mark_ready(folder: Path, peer: str, recipe: str) -> None:
    (folder / peer / READY).write_text(recipe)
