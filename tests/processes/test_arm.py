"""The C++ libraries for another machine: they compile and link, without the levels of x86-64."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, SYMBOLS = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm"
FLAGS = (
    *("-std=c++20", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions"),
    *("-fno-rtti", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror"),
    "-Wl,-z,defs",  # what is missing is missed now, not when it is loaded
)

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None,
    reason=f"no {COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", ["megainfer/m2n", "megainfer/compute/cpu"])
def test_libraries_compile_and_link_for_arm(folder: str, tmp_path: Path) -> None:
    sources = [str(path) for path in sorted((ROOT / folder / "native").glob("*.cpp"))]
    library = tmp_path / "_native.so"
    command = [COMPILER, *FLAGS, f"-I{ROOT / 'megainfer/native'}", "-o", str(library), *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    names = subprocess.run([SYMBOLS, "-D", str(library)], capture_output=True, text=True).stdout
    assert "megainfer" in names
