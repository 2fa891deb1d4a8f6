"""What an error of a device means: the process that met it can't go on, and says where it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megainfer.errors import NodeDied

_CUDA_TEXTS = ("CUDA error", "Triton Error [CUDA]", "CUDA_ERROR_")


@contextmanager
def ends_the_node(gpu: str) -> Iterator[None]:
    """Within it, an error of this GPU becomes NodeDied: after an illegal access nothing that the
    process has there can be used, and memory that is short once will be again.

    gpu: its name in words. Where the work was that met the error, its notes say.
    """
    try:
        yield
    except Exception as error:  # told apart by `_text`; all others pass
        text = _text(error)
        if text is None:
            raise
        raise NodeDied(f"{gpu} {text}") from error


def _text(error: BaseException) -> str | None:
    """What went wrong and where, None of what isn't a device's error. What closing a broken device
    raised meanwhile stands before the first error, which counts."""
    first: str | None = None
    seen: BaseException | None = error
    while seen is not None:
        first = _own_text(seen) or first
        seen = seen.__context__
    return first


def _own_text(error: BaseException) -> str | None:
    reason = (str(error).strip().splitlines() or [""])[0]
    where = "".join(f" {note}" for note in getattr(error, "__notes__", ())[:1])
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"is out of memory{where}: {reason} A smaller --kv-cache-memory or "
            "--max-num-batched-tokens leaves more"
        )
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(text in reason for text in _CUDA_TEXTS)
    ):
        return f"failed, which was noticed{where}: {reason}"
    return None
