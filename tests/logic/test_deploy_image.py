"""deploy/Dockerfile and deploy/systemd: their commands are those that the Makefile and the README
have, and this program takes them. Nothing here builds an image."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from megainfer.cli import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
FOLDER = "/opt/megainfer"


def steps(name: str) -> list[str]:
    """What follows each instruction of this name, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def options_of(args: list[str]) -> dict[str, Any]:
    """What the program's own parser makes of a command line; it raises for what it doesn't take."""
    command = typer.main.get_command(app).commands[args[0]]  # type: ignore[attr-defined]  # a group
    found: dict[str, Any] = command.make_context(args[0], list(args[1:])).params
    return found


def test_the_image_has_the_torch_of_the_makefile() -> None:
    (torch,) = re.findall(r"^TORCH \?= (.+)$", MAKEFILE, re.MULTILINE)
    assert f"TORCH={torch}" in steps("ARG")
    (index,) = [arg.partition("=")[2] for arg in steps("ARG") if arg.startswith("TORCH_INDEX=")]
    assert f"make run TORCH_INDEX={index}" in (ROOT / "README.md").read_text()


def test_the_image_is_installed_as_make_run_does() -> None:
    """Torch first and alone, then exactly what the lock file names, then the package."""
    made = MAKEFILE.partition("$(VENV)/.run:")[2].partition("else")[0]
    wanted = re.findall(r"\$\(INSTALL\) (.+)", made)
    assert len(wanted) == 2
    installs = [step for step in steps("RUN") if step.startswith(f"{FOLDER}/bin/pip install")]
    given = [step.partition("--no-cache-dir ")[2] for step in installs]
    assert given == ['--index-url "$TORCH_INDEX" "$TORCH"', wanted[0], wanted[1].replace(" -e", "")]


def test_everything_that_is_copied_is_there_and_sent() -> None:
    """.dockerignore leaves out all but what it names."""
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    own = [copy for copy in steps("COPY") if not copy.startswith("--from")]
    copied = {name for copy in own for name in copy.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_runs_as_nobody_who_may_do_anything() -> None:
    """And as the user of the pods, whose cache is in its home."""
    (user,), (home,) = steps("USER"), [folder for folder in steps("WORKDIR") if "home" in folder]
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert f"useradd --uid {user} --create-home {Path(home).name}" in last
    pods = (ROOT / "deploy/kubernetes/leaderworkerset.yaml").read_text()
    assert f"runAsUser: {user}" in pods
    assert f"mountPath: {home}/.cache" in pods


def test_the_image_starts_what_the_program_takes() -> None:
    (entry,), (command,) = steps("ENTRYPOINT"), steps("CMD")
    assert json.loads(entry) == ["tini", "--", "megainfer"]
    options = options_of(json.loads(command))
    assert options["host"] == "0.0.0.0"
    assert str(options["port"]) in steps("EXPOSE")[0].split()
    assert f"{FOLDER}/bin" in steps("ENV")[0]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_what_the_program_takes(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    (line,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    options = tmp_path / "serve.yaml"
    options.write_text(yaml.dump({"model": "path/to/model", "ffn-gpus": 2}))
    told = line.replace("/etc/megainfer/serve.yaml", str(options))
    program, *args = shlex.split(told.replace("${JOIN}", "10.0.0.1:7300"))
    assert program == f"{FOLDER}/bin/megainfer"
    assert options_of(args)["drain_timeout"] < stop_seconds(text)


def stop_seconds(unit: str) -> int:
    """After which systemd kills; SIGTERM is for the first process alone."""
    assert "KillMode=mixed" in unit
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    return int(seconds)
