"""A folder that is built once, whole or not at all, however many processes ask for it.

Builders take turns by a file lock, which the kernel drops when its holder dies. Each builds in a
working folder beside the target and renames the result into place, so the target either doesn't
exist, or is complete, or is one that an older recipe left. Readers of a complete target take no
lock.
"""

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from megainfer.errors import ModelError

MARKER = "megainfer_demo.json"
"""Called so since the demo model was the only such folder; another name would build it anew."""
_POLL_S = 0.1

Build = Callable[[Path, Path], None]
"""Called with a scratch folder and the folder to fill, both existing and empty."""


def build_once(
    target: Path, recipe: dict[str, Any], build: Build, *, lock_timeout_s: float = 1800.0
) -> Path:
    """Return `target`, filling it with `build` first unless `recipe` has already filled it.

    `recipe` must equal itself after a round trip through JSON. Raises `ModelError` if another
    process holds the lock for `lock_timeout_s` seconds, or if the file system refuses.
    """
    if is_complete(target, recipe):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target, lock_timeout_s):
            if not is_complete(target, recipe):  # it may have been built while we waited
                _build_and_publish(target, recipe, build)
    except OSError as error:
        raise ModelError(f"cannot build {target}: {error}") from error
    return target


def is_complete(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether `folder` was filled by this very recipe and still has all its files, by size."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    if not isinstance(marker, dict) or marker.get("recipe") != recipe:
        return False
    return bool(marker.get("files") == _file_sizes(folder))


def _file_sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.iterdir() if path.is_file() and path.name != MARKER)
    return {path.name: path.stat().st_size for path in sorted(files)}


def _build_and_publish(target: Path, recipe: dict[str, Any], build: Build) -> None:
    prefix = f".{target.name}.building-"
    for left_over in target.parent.glob(prefix + "*"):  # of a killed builder: we hold the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as work_name:
        work = Path(work_name)
        scratch, fresh = work / "scratch", work / "fresh"
        scratch.mkdir()
        fresh.mkdir()
        build(scratch, fresh)
        marker = {"recipe": recipe, "files": _file_sizes(fresh)}
        (fresh / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        if target.exists():
            target.rename(work / "stale")
        fresh.rename(target)


@contextmanager
def _lock(target: Path, timeout_s: float) -> Iterator[None]:
    with (target.parent / f".{target.name}.lock").open("w") as file:
        _acquire(file, time.monotonic() + timeout_s)
        yield


def _acquire(file: TextIO, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ModelError(
                    f"another process has held {file.name} for too long: "
                    "it is building the model's folder; let it finish or end it, then try again"
                ) from None
        time.sleep(_POLL_S)  # a lock with a time limit: flock itself has none
