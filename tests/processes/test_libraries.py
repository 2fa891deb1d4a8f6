"""The libraries that nodes are forked with leave the process that forks them without threads."""

import subprocess
import sys

PROGRAM = """
import os, sys
from megainfer.supervise.child import fork_process
from megainfer.supervise.forking.libraries import BLAS_THREADS, load_libraries
load_libraries()
import megainfer.attention_node.process, megainfer.colocated.process, megainfer.expert_node.process
import megainfer.compute.cpu.backend, megainfer.compute.reference.backend
import megainfer.m2n.dist.ports, megainfer.m2n.mixed.ports, megainfer.m2n.shm.ports
assert {"numpy", "torch"} <= set(sys.modules)
if (pid := fork_process()) == 0:
    os._exit(os.environ[BLAS_THREADS] != "5")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_that_has_loaded_them_may_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "5"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
