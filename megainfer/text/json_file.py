"""JSON files of a model's folder."""

from pathlib import Path
from typing import Any

from megainfer.models.config import read_json


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises ModelError."""
    return read_json(path) if path.exists() else {}
