"""From what a user names as MODEL to a folder with a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.model_folder.demo.model import (
    DEMO_MODEL_NAME,
    built_demo_model,
    ensure_demo_model,
)
from megainfer.model_folder.gguf import gguf_folder, is_gguf_folder_there, is_gguf_place

WEIGHTS = "*.safetensors"
FILES = ["*.json", WEIGHTS, "*.jinja", "*.model", "*.txt"]
"""What is fetched of a hub repository: never code, never pickled weights."""

IGNORED = ["original/*", "metal/*", "onnx/*", "consolidated*.safetensors"]
"""The same weights once more, in the layout of other programs."""

CONFIG_FILES = ["config.json", "generation_config.json"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a user names: a local folder or GGUF file, a hub id (`owner/name`) at a revision, or
    None, the demo. weights: whether those of a hub id are wanted too, or only the small files
    beside them."""

    model: str | None = None
    revision: str | None = None
    weights: bool = True

    @property
    def place(self) -> Path | None:
        """The local folder, or the GGUF file. Raises ModelError for what can't be a model."""
        return None if self.model is None else _local_place(self.model, self.revision)

    @property
    def is_ready(self) -> bool:
        """Whether nothing is to be fetched or made. Raises ModelError as `place`."""
        if self.model is None:
            return built_demo_model() is not None
        place = self.place
        return place is not None and (not is_gguf_place(place) or is_gguf_folder_there(place))

    @property
    def files(self) -> list[str]:
        """Of a hub repository."""
        return FILES if self.weights else [name for name in FILES if name != WEIGHTS]


def resolve_model(source: ModelSource, progress: Progress) -> Path:
    """A local folder as it is, one made for a GGUF file; a hub id through huggingface_hub; None:
    the demo.

    Raises ModelError when there is no such model or it cannot be fetched.
    """
    if source.model is None:
        if source.revision is not None:
            raise ModelError("--revision is for a hub id; the demo model has none")
        return ensure_demo_model(progress)
    if source.place is not None:
        return _folder_of(source.place)
    if source.weights:
        progress(f"fetching {source.model}", 0.0)
    return _fetch(source.model, source.files, source.revision)


def resolve_config(model: str) -> Path:
    """As `resolve_model`, but of a hub id only what `load_spec` reads is fetched."""
    place = _local_place(model)
    return _fetch(model, CONFIG_FILES) if place is None else _folder_of(place)


def _folder_of(place: Path) -> Path:
    return gguf_folder(place) if is_gguf_place(place) else place


def _local_place(model: str, revision: str | None = None) -> Path | None:
    """None for what may be a hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir() or (is_gguf_place(folder) and folder.exists()):
        if revision is not None:
            raise ModelError(f"--revision is for a hub id, and {model} is here")
        return folder
    if is_gguf_place(folder):
        raise ModelError(f"there is no file {model}; of a hub id's GGUF files, download one first")
    if folder.exists():
        raise ModelError(
            f"{model} is a file; name the folder that holds config.json, or a GGUF file"
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model} is neither a folder nor a hub id of the form owner/name; leave MODEL out to "
            "use the demo model"
        )
    return None


def _fetch(model: str, files: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=files, ignore_patterns=IGNORED
            )
        )
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
