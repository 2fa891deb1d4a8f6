"""What the GPU kernels need of what is installed; nothing is loaded by asking."""

from importlib.metadata import PackageNotFoundError, version

TRITON = {"2.11": "3.6.0"}
"""The one that belongs to a torch; to later ones LATEST."""
LATEST = "3.7.1"


def package_problem() -> str:
    """Why nothing can be computed on a GPU with these packages, and what helps; "" where it can."""
    torch = version("torch")
    number, _, build = torch.partition("+")
    if build.startswith("cpu"):
        return f"torch {torch} was built without CUDA; pip install torch=={number} in its place"
    try:
        version("triton")
    except PackageNotFoundError:
        belongs = TRITON.get(number.rpartition(".")[0], LATEST)
        return f"triton is not installed; pip install triton=={belongs}, torch {number}'s own"
    return ""
