"""The parts of `gpu_suite.py`; each module has `run(bench)`, which returns what it has found."""
