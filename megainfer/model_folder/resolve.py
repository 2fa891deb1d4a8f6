"""From what a user names as MODEL to a folder with a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME, ensure_demo_model
from megainfer.models.foreign import gguf_refusal

WEIGHTS = "*.safetensors"
FILES = ["*.json", WEIGHTS, "*.jinja", "*.model", "*.txt"]
"""What is fetched of a hub repository: never code, never pickled weights."""

IGNORED = ["original/*", "metal/*", "onnx/*", "consolidated*.safetensors"]
"""The same weights once more, in the layout of other programs."""

CONFIG_FILES = ["config.json", "generation_config.json"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a user names: a local folder, a hub id (`owner/name`) at a revision, or None, the demo.
    weights: whether those of a hub id are wanted too, or only the small files beside them."""

    model: str | None = None
    revision: str | None = None
    weights: bool = True

    @property
    def folder(self) -> Path | None:
        """Of what is here and needs nothing. Raises ModelError for what can't be a model."""
        return None if self.model is None else _local_folder(self.model, self.revision)

    @property
    def files(self) -> list[str]:
        """Of a hub repository."""
        return FILES if self.weights else [name for name in FILES if name != WEIGHTS]


def resolve_model(source: ModelSource, progress: Progress) -> Path:
    """A local folder as it is; a hub id through huggingface_hub; None: the demo.

    Raises ModelError when there is no such model or it cannot be fetched.
    """
    if source.model is None:
        if source.revision is not None:
            raise ModelError("--revision is for a hub id; the demo model has none")
        return ensure_demo_model(progress)
    if source.folder is not None:
        return source.folder
    if source.weights:
        progress(f"fetching {source.model}", 0.0)
    return _fetch(source.model, source.files, source.revision)


def resolve_config(model: str) -> Path:
    """As `resolve_model`, but of a hub id only what `load_spec` reads is fetched."""
    return _local_folder(model) or _fetch(model, CONFIG_FILES)


def _local_folder(model: str, revision: str | None = None) -> Path | None:
    """None for what may be a hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"--revision is for a hub id, and {model} is a local folder")
        return folder
    if folder.suffix == ".gguf":
        raise ModelError(gguf_refusal(folder))
    if folder.exists():
        raise ModelError(f"{model} is a file; name the folder that holds config.json")
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
