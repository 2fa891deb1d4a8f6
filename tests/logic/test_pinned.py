"""Weights that are held in memory."""

from pathlib import Path

import pytest

from megainfer.checkpoint.pinned import PIECE_BYTES, PinnedFiles
from megainfer.errors import ConfigError


def locked_bytes() -> int:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmLck:")]
    return int(line.split()[1]) * 1024


def folder_with(path: Path, size: int) -> Path:
    (path / "model.safetensors").write_bytes(bytes(size))
    (path / "config.json").write_text("{}")
    return path


def test_files_are_locked_piece_by_piece(tmp_path: Path) -> None:
    before = locked_bytes()
    size = PIECE_BYTES + 5
    files = PinnedFiles(folder_with(tmp_path, size))
    files.step()
    assert (files.pinned, files.done) == (PIECE_BYTES, False)
    assert locked_bytes() - before >= PIECE_BYTES
    files.step()
    files.step()
    assert (files.pinned, files.done) == (size, True)


def test_a_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PinnedFiles(folder_with(tmp_path, 4096))

    class Refusing:
        def mlock(self, *_: object) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Refusing())
    with pytest.raises(
        ConfigError, match=r"--pin-weights: after 0 B no more of model\.safe.*ulimi"
    ):
        files.step()
