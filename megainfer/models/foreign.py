"""What a folder holds in place of what is read here, and the way out. Pure: no torch."""

from pathlib import Path

CONVERT = (
    "convert it once, where transformers is installed and you trust its author: "
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}', dtype='auto').save_pretrained('{0}')\""
)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def foreign_weights(folder: Path) -> str | None:
    """Why the weights in a folder without safetensors can't be served; None where there are
    none."""
    for pattern in PICKLED:
        if found := next(folder.glob(pattern), None):
            return (
                f"{folder} holds its weights as {found.name}, a pickle, which can run its author's "
                f"code when it is read; only *.safetensors is read here; {CONVERT.format(folder)}"
            )
    return None
