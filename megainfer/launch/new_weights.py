"""Other weights for an instance that serves: whether they fit, and a copy of them. No torch."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from megainfer.checkpoint.check import check_weights
from megainfer.checkpoint.copies import SealedCopies, is_sealed_file
from megainfer.checkpoint.headers import TensorHeaders
from megainfer.config import format_bytes
from megainfer.errors import CheckpointError, ConfigError
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan
from megainfer.models.quantization import QuantizationSpec, quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec

CONFIG = "config.json"
MAX_VERSION_BYTES = 256
"""Of a version's name, which comes with every token."""


@dataclass(frozen=True, slots=True)
class CopiedWeights:
    """files: paths that others can open. quantization: how what is in them is quantised."""

    files: list[str]
    quantization: QuantizationSpec | None


@contextmanager
def copied_weights(plan: Plan, source: str | Path) -> Iterator[CopiedWeights]:
    """Check new weights for an instance of this plan, and have a copy of them while it lasts.

    source: a folder with config.json and safetensors files, or one safetensors or GGUF file, which
    hold every tensor that the plan's nodes read, under the names of the plan's own checkpoint.

    Raises CheckpointError naming the file or tensor at fault, ModelError for another config.json,
    ConfigError where memory doesn't suffice or nodes can't take other weights.
    """
    place = Path(source)
    check_replaceable(plan)
    if place.is_dir():
        quantization = _quantization_of(plan, place)
        files = TensorHeaders(place).files
    elif place.exists():
        quantization, files = None, [place]
    else:
        raise CheckpointError(f"{place} is neither a folder nor a safetensors file")
    check_weights(place if place.is_dir() else files, plan.spec, quantization)
    _check_memory(plan, files)
    with SealedCopies(files) as copies:
        yield CopiedWeights(copies.paths, quantization)


def check_version(version: str | None) -> None:
    """Raises ConfigError where it is no name that a version of weights can have."""
    if version is None:
        return
    try:
        is_good = isinstance(version, str) and 0 < len(version.encode()) <= MAX_VERSION_BYTES
    except UnicodeEncodeError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"version must be a string of 1 to {MAX_VERSION_BYTES} bytes of UTF-8, or None, not "
            f"{reprlib.repr(version)}"
        )


def check_replaceable(plan: Plan) -> None:
    """Raises ConfigError where some node can't take other weights while it serves."""
    if plan.places is not None:
        raise ConfigError(
            "weights of nodes on other hosts can't be replaced while they serve, since files are "
            "of one host; start the server anew with the new weights"
        )
    if plan.devices.gpus:
        raise ConfigError(
            "weights of nodes on GPUs can't be replaced while they serve, since graphs are bound "
            "to them; start the server anew with the new weights"
        )


def _quantization_of(plan: Plan, folder: Path) -> QuantizationSpec | None:
    """Of a folder whose config.json, if there is one, is of the plan's model."""
    if not (folder / CONFIG).exists():
        return None
    own, theirs = plan.spec, load_spec(folder, plan.config.hf_overrides)
    if different := _differences(own, theirs):
        raise CheckpointError(
            f"{folder / CONFIG} is of another model than the one that is served: they differ in "
            f"{', '.join(different)}"
        )
    return quantization_of(folder)


def _differences(own: ModelSpec, theirs: ModelSpec) -> list[str]:
    """Of what computing depends on, by the fields' names. Trainers keep weights in other dtypes,
    and write end tokens and context lengths of their own, which requests have no part in."""
    theirs = replace(
        theirs,
        dtype=own.dtype,
        eos_token_ids=own.eos_token_ids,
        max_position=own.max_position,
    )
    names = (field.name for field in fields(own))
    return [name for name in names if getattr(own, name) != getattr(theirs, name)]


def _check_memory(plan: Plan, files: list[Path]) -> None:
    """Until all nodes have them, there are the old weights, the new ones and the files' copy."""
    copy = sum(path.stat().st_size for path in files if not is_sealed_file(path))
    weights = plan.nodes_ledger().of("weights")
    available = read_machine().available_memory
    if copy + weights > available:
        raise ConfigError(
            f"new weights take {format_bytes(weights)} beside the old ones and {format_bytes(copy)}"
            f" for a copy of their files, but this machine has {format_bytes(available)} of memory "
            "available; use a smaller --kv-cache-memory or --expert-dtype int8"
        )
