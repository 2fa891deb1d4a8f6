"""What is installed: all that pyproject.toml asks for, exactly, with the hashes of its files."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"requirements.lock": ["demo"], "requirements-test.lock": ["demo", "test"]}
APART = "torch"
FLOORS = {"h11": "0.16", "starlette": "0.49.1", "aiohttp": "3.13.3", "jinja2": "3.1.6"}
"""Below these, holes are known."""


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and hashes."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        pin, *hashes = line.split()
        package, version = pin.split("==")
        found[str(canonicalize_name(package))] = (version, hashes)
    return found


def asked_for(extras: list[str]) -> Iterator[Requirement]:
    optional = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for e in extras for line in optional[e])]:
        yield Requirement(line)


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_every_package_is_locked_within_its_range(name, extras):
    pins = locked(name)
    for requirement in asked_for(extras):
        package = canonicalize_name(requirement.name)
        if package != APART:
            version, _ = pins[package]
            assert requirement.specifier.contains(version), f"{requirement} is locked as {version}"
    assert APART not in pins


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_hashes_and_no_address(name):
    for package, (_, hashes) in locked(name).items():
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), package
    assert "://" not in (ROOT / name).read_text()


def test_what_runs_is_what_was_tested():
    run, tested = (locked(name) for name in LOCKS)
    assert {name: pin for name, pin in run.items() if tested[name] != pin} == {}


def test_floors_are_above_known_holes():
    requirements = {r.name: r for r in asked_for(["bench", "test"])}
    for package, floor in FLOORS.items():
        least = [s.version for s in requirements[package].specifier if s.operator == ">="]
        assert least == [floor]
    assert "aiohttp" not in {r.name for r in asked_for([])}, "a server does without"
