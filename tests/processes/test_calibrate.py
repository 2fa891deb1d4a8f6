"""`calibrate` as a whole, with kernels so small that it is a matter of seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megainfer.compute.cpu.kernels import library
from megainfer.planner.hardware import load_devices

SECONDS = 240.0
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path

from megainfer.calibration.calibrate import Wish, calibrate
from megainfer.launch.machine import read_machine
from megainfer.planner.hardware import to_toml
from megainfer.supervise.forking.libraries import load_libraries

load_libraries()
from megainfer.calibration.kernels import Sizes
from megainfer.calibration.toy import BULKY
from megainfer.compute.experts import ExpertsShape

sizes = Sizes(2**18, (64, 64), ExpertsShape(4, 64, 32, 2), (1, 4), 16, ((1, 32), (2, 64)))
bulky = replace(BULKY, layers=2, hidden=128, heads=2, kv_heads=1, experts=4, intermediate=64)
wish = Wish("tiny", (1,), 10.0, 1.0, sizes, bulky)
told = []
devices = calibrate(wish, read_machine(), "a processor", told.append)
Path(sys.argv[1]).write_text(to_toml(devices))
print(len(told))
"""


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.skipif(not library.is_built(), reason="the CPU kernels are not built")
def test_a_file_that_the_planner_reads(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "what is being measured is told"
    devices = load_devices(path)
    cores = len(os.sched_getaffinity(0))
    made = {name for name in devices if name.startswith("tiny")}
    assert made == {f"tiny-{cores}", "tiny-1", "tiny-colocated"} | (
        {"tiny-1-beside"} if cores > 1 else set()
    )
    for device in (devices[name] for name in made):
        assert device.kind == "cpu"
        assert {"float32", "bfloat16"} <= set(device.flops)
        assert "calibrate" in device.sources["flops"]
        assert device.efficiency.attention_layer_seconds > 0
        assert device.efficiency.expert_layer_seconds > 0
    node, whole = (devices[name] for name in ("tiny-1", "tiny-colocated"))
    assert node.memory_bytes == whole.memory_bytes / cores
