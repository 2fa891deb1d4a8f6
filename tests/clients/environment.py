"""Clients that need much, or other versions than we do, live in environments of their own.

They are made once, by the first test that needs them, and kept in pytest's cache.
"""

import hashlib
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

INSTALL_SECONDS = 900.0
RUN_SECONDS = 300.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class PythonEnvironment:
    """With these requirements; where they can't be had, the test is skipped.

    shares: what is installed here is there too, so that what a client needs of it, such as torch,
    isn't installed again.
    """

    def __init__(self, environments: Path, requirements: Sequence[str], shares: bool) -> None:
        shared = site.getsitepackages() if shares else []
        self.folder = environments / _name("python", [sys.version, *requirements, *shared])
        if not (self.folder / "complete").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            _install([sys.executable, "-m", "venv", str(self.folder)], requirements)
            (own,) = self.folder.glob("lib/python*/site-packages")
            (own / "shared.pth").write_text("\n".join(shared))
            pip = [str(self.folder / "bin/python"), "-m", "pip", "install", "--quiet"]
            _install([*pip, *requirements], requirements)
            (self.folder / "complete").touch()

    def run(
        self, program: str, *args: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, such as `python`, to its end."""
        return _run([str(self.folder / "bin" / program), *args], cwd, env)


class NodeEnvironment:
    """A folder with these npm packages."""

    def __init__(self, environments: Path, requirements: Sequence[str]) -> None:
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            pytest.skip("node and npm aren't installed")
        self._node = node
        self.folder = environments / _name("node", requirements)
        if not (self.folder / "complete").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "package.json").write_text("{}")
            quiet = ["--no-audit", "--no-fund", "--silent"]
            command = [npm, "install", *quiet, "--prefix", str(self.folder)]
            _install([*command, *requirements], requirements)
            (self.folder / "complete").touch()

    def run(
        self, script: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a module's text to its end."""
        path = self.folder / "script.mjs"  # modules are looked for from where a script lies
        path.write_text(script)
        return _run([self._node, str(path)], self.folder, env)

    def run_program(
        self, program: str, *args: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its packages' programs, given below `node_modules`, to its end."""
        return _run([str(self.folder / "node_modules" / program), *args], cwd, env)


def _name(kind: str, requirements: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(list(requirements)).encode()).hexdigest()
    return f"{kind}-{digest[:12]}"


def _install(command: Sequence[str], requirements: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        pytest.skip(f"{', '.join(requirements)} can't be installed here: {reason}")


def _run(
    command: Sequence[str], cwd: Path, env: Mapping[str, str] | None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **OFFLINE, "PYTHONPATH": "", **(env or {})},
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done
