"""A family of models: whose checkpoints it reads, and how."""

from collections.abc import Callable
from dataclasses import dataclass

from megainfer.models.config import Config
from megainfer.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """title: what its makers call it. models: some that people run, as `megainfer models` lists
    them. architectures: what config.json calls its class, any of these. read_spec: from config.json
    to the spec; raises ModelError."""

    title: str
    models: str
    architectures: tuple[str, ...]
    read_spec: Callable[[Config], ModelSpec]
