"""The values of --kernels that a test goes through."""

import pytest

from megainfer.compute.cpu.kernels import library

KERNELS = [
    "reference",
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not library.is_built(), reason="kernels are not built")
    ),
]
