"""GPUs are found through NVIDIA's library, and where it isn't there or fails there are none."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from megainfer.commands import environment
from megainfer.compute.gpu import packages
from megainfer.launch.nvml import Gpu, ask_nvml, visible_gpus

SOURCE = Path(__file__).parents[1] / "support" / "fake_nvml.c"
CC = shutil.which("cc")
Build = Callable[..., str]


@pytest.fixture
def build(tmp_path) -> Build:
    """Compiles the fake library; its path."""
    if CC is None:
        pytest.skip("no C compiler")

    def build(gpus: int = 3, *flags: str) -> str:
        path = tmp_path / f"nvml_{gpus}{''.join(flags)}.so"
        command = [CC, "-shared", "-fPIC", f"-DFAKE_GPUS={gpus}", *flags, "-o", path, SOURCE]
        subprocess.run(command, check=True, timeout=60)
        return str(path)

    return build


def test_gpus_and_what_they_reach(build):
    library = build(3)
    answer = ask_nvml(library)
    assert (answer.driver, answer.problem) == ("580.65", "")
    first, second, third = answer.gpus
    assert first == Gpu(
        uuid="GPU-00000000-feed",
        name="NVIDIA Fake 0",
        memory=2**37,
        free_memory=2**37,
        capability=(9, 0),
        peers=(second.uuid,),
    )
    assert (second.free_memory, second.split, second.peers) == (2**37 - 2**33, True, (first.uuid,))
    assert (third.architecture, third.split, third.peers) == ("sm_75", False, ())
    assert ctypes.CDLL(library).fake_open_sessions() == 0


def test_where_there_is_no_library_or_it_fails_there_are_none(build, tmp_path):
    missing = ask_nvml(str(tmp_path / "missing.so"))
    assert missing.gpus == ()
    assert "there is no NVIDIA driver" in missing.problem
    failing = build(1, "-DFAILS")
    answer = ask_nvml(failing)
    assert answer.gpus == ()
    assert answer.problem == f"{failing} fails: Driver/library version mismatch"
    assert ctypes.CDLL(failing).fake_open_sessions() == 0


def test_a_library_without_its_functions_is_none():
    other = next(Path(sys.prefix).rglob("msgspec/_core*.so"))
    answer = ask_nvml(str(other))
    assert answer.gpus == ()
    assert "nvml" in answer.problem


@pytest.mark.parametrize(
    ("wish", "seen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2, 0", [2, 0]),
        ("0,3,1", [0]),
        ("GPU-2,1", [2, 1]),
        ("MIG-1", []),
    ],
)
def test_only_visible_gpus_are_counted_and_in_that_order(wish, seen):
    gpus = [Gpu(f"GPU-{n}", "H200", 1, 1, (9, 0)) for n in range(3)]
    assert visible_gpus(gpus, wish) == tuple(gpus[n] for n in seen)


def test_asking_neither_loads_torch_nor_starts_a_thread():
    code = (
        "import os, sys\nfrom megainfer.launch.machine import read_machine\nread_machine()\n"
        "print('torch' in sys.modules, len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "1"], done.stderr


def test_what_a_bug_report_says_of_gpus(build, monkeypatch):
    monkeypatch.setattr(environment, "ask_nvml", partial(ask_nvml, build(3)))
    lines = [*environment.describe_environment()]
    assert f"{'driver':<10} 580.65" in lines
    told = [line.split(None, 2)[2] for line in lines if line.startswith("GPU ")]
    assert told == [
        "NVIDIA Fake 0, sm_90, 128.0 GiB, 128.0 GiB free; reaches 1",
        "NVIDIA Fake 1, sm_90, 128.0 GiB, 120.0 GiB free, split into instances; reaches 0",
        "NVIDIA Fake 2, sm_75, 128.0 GiB, 112.0 GiB free; reaches no other",
    ]
    assert "feed" not in "".join(lines), "a GPU's uuid is nobody's affair"
    for package in ("triton", "cuda-bindings"):
        assert any(line.startswith(f"{'package':<10} {package} ") for line in lines)


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"torch": "2.13.0", "triton": "3.7.1"}, ""),
        ({"torch": "2.13.0+cpu", "triton": "3.6.0"}, "built without CUDA; pip install torch==2.13"),
        ({"torch": "2.11.0"}, "triton is not installed; pip install triton==3.6.0"),
        ({"torch": "2.12.1+cu130"}, "triton is not installed; pip install triton==3.7.1"),
    ],
)
def test_packages_that_gpus_need(monkeypatch, versions, problem):
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "version", version)
    found = packages.package_problem()
    assert problem in found
    assert bool(problem) == bool(found)
