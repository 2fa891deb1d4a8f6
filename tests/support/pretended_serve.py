"""`megainfer serve` on a machine that believes to have GPUs, on which the CPU's kernels compute.

PRETENDED_GPUS=2 python -m tests.support.pretended_serve serve path/to/model ...
"""

import os

from tests.support.chaos.gpus import pretend_gpus

GPUS = "PRETENDED_GPUS"


def main() -> None:
    pretend_gpus(int(os.environ[GPUS]), "cpu")
    from megainfer.cli import main as megainfer

    megainfer()


if __name__ == "__main__":
    main()
