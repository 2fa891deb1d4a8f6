"""From what a user names as MODEL to a folder with a checkpoint."""

from collections.abc import Callable
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME, ensure_demo_model

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched of a hub repository: never code, never pickled weights."""

IGNORED = ["original/*", "metal/*", "onnx/*", "consolidated*.safetensors"]
"""The same weights once more, in the layout of other programs."""

CONFIG_FILES = ["config.json", "generation_config.json"]

Progress = Callable[[str, float], None]


def resolve_model(model: str | None, progress: Progress) -> Path:
    """A local folder as it is; a hub id (`owner/name`) through huggingface_hub; None: the demo.

    Raises ModelError when there is no such model or it cannot be fetched.
    """
    if model is None:
        return ensure_demo_model(progress)
    local = _local_folder(model)
    if local is not None:
        return local
    progress(f"fetching {model}", 0.0)
    return _fetch(model, FILES)


def resolve_config(model: str) -> Path:
    """As `resolve_model`, but of a hub id only what `load_spec` reads is fetched."""
    return _local_folder(model) or _fetch(model, CONFIG_FILES)


def _local_folder(model: str) -> Path | None:
    """None for what may be a hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{model} is a file; name the folder that holds config.json")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model} is neither a folder nor a hub id of the form owner/name; leave MODEL out to "
            "use the demo model"
        )
    return None


def _fetch(model: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=files, ignore_patterns=IGNORED))
    except Exception as error:  # the library's many network errors, none of which share a base
        reason, *_ = str(error).split("\n")
        raise ModelError(
            f"{model} is no local folder, and fetching it from the hub failed "
            f"({type(error).__name__}: {reason}); name a folder that exists or "
            "check the network"
        ) from error


def served_name(model: str | None) -> str:
    """What the API calls the model unless --served-model-name says otherwise."""
    return DEMO_MODEL_NAME if model is None else model.rstrip("/")
