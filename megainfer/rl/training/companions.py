"""What stands beside the weights in a model's folder."""

from collections.abc import Mapping
from pathlib import Path

from megainfer.small_file import MAX_JSON_BYTES, read_small

PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Tokenizer, templates, sampling defaults."""
OF_WEIGHTS = ("config.json", "model.safetensors.index.json")
"""What transformers writes with the weights."""
REWRITTEN = "generation_config.json"
"""What it writes too, without all that it doesn't know."""


def read_companions(folder: Path) -> dict[str, bytes]:
    """Name -> content: a tokenizer has tens of megabytes at most. Raises OSError."""
    return {
        path.name: read_small(path, MAX_JSON_BYTES)
        for pattern in PATTERNS
        for path in sorted(folder.glob(pattern))
        if path.name not in OF_WEIGHTS
    }


def write_companions(companions: Mapping[str, bytes], folder: Path) -> None:
    """Beside weights that transformers has written there."""
    (folder / REWRITTEN).unlink(missing_ok=True)
    for name, content in companions.items():
        (folder / name).write_bytes(content)
