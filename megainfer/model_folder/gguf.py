"""A model folder for a GGUF file: its metadata as the small files that a checkpoint has, and links
to the weights, which stay where they are.

It is made once, in MegaInfer's cache folder, and made anew where the file has changed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError
from megainfer.gguf.files import SUFFIX, gguf_files, read_headers
from megainfer.gguf.metadata import Metadata
from megainfer.model_folder.build_once import build_once, is_complete
from megainfer.model_folder.cache import default_cache_dir

VERSION = 2
"""Of what the small files say; another one makes them anew."""


def is_gguf_place(place: Path) -> bool:
    """Whether it is a GGUF file, or a folder whose weights are nothing else."""
    if place.is_dir():
        return any(place.glob(f"*{SUFFIX}")) and not any(place.glob("*.safetensors"))
    return place.suffix == SUFFIX


def gguf_folder(place: Path) -> Path:
    """Of a place that `is_gguf_place`: the folder, made where it isn't there yet.

    Raises ModelError, CheckpointError among them, for what isn't served or can't be read.
    """
    files = gguf_files(place)

    def build(scratch: Path, fresh: Path) -> None:
        del scratch
        _write(files, fresh)

    return build_once(_target(files), _recipe(files), build)


def is_gguf_folder_there(place: Path) -> bool:
    """Whether `gguf_folder` has nothing to make. Raises ModelError where there are no files."""
    files = gguf_files(place)
    return is_complete(_target(files), _recipe(files))


def _target(files: tuple[Path, ...]) -> Path:
    whole = hashlib.sha256(str(files[0].resolve()).encode()).hexdigest()
    return default_cache_dir() / "gguf" / f"{files[0].stem}-{whole[:16]}"


def _recipe(files: tuple[Path, ...]) -> dict[str, Any]:
    stats = [(str(path.resolve()), path.stat()) for path in files]
    parts = [[name, found.st_size, found.st_mtime_ns] for name, found in stats]
    return {"version": VERSION, "files": parts}


def _write(files: tuple[Path, ...], folder: Path) -> None:
    # Imported here, so that finding a folder that is there costs no import of tokenizers.
    from megainfer.models.gguf.convert import end_tokens, read_config
    from megainfer.text.gguf.write import write_tokenizer

    headers = read_headers(files)
    metadata = Metadata(headers[0].path, headers[0].metadata)
    for path in files:
        (folder / path.name).symlink_to(path.resolve())
    _write_json(folder / "config.json", read_config(headers))
    if ends := end_tokens(metadata):
        _write_json(folder / "generation_config.json", {"eos_token_id": ends})
    write_tokenizer(metadata, folder)
    _check_all_read(folder, files)


def _check_all_read(folder: Path, files: tuple[Path, ...]) -> None:
    from megainfer.models.gguf.convert import unread_tensor
    from megainfer.models.registry import load_spec
    from megainfer.models.sources import all_sources

    try:
        spec = load_spec(folder)
    except ModelError as error:  # of a file that nobody has seen
        raise ModelError(str(error).replace(str(folder / "config.json"), str(files[0]))) from error
    names = frozenset(source.name for source in all_sources(spec))
    unread = unread_tensor(read_headers(files), names, len(spec.layers))
    if unread is not None:
        raise ModelError(
            f"{files[0]} has a tensor {unread}, which {spec.architecture} has no place for: "
            "without it, it would be another model"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
