"""The checkpoints in a run's folder: whole or not there, the latest ones kept."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

NAME = re.compile(r"step-(\d{8})")
PARTIAL = "unfinished"


class Checkpoints:
    """Folders `step-00000050` in `folder`, of which the latest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill an empty folder, which then takes its name at once; a process that is
        killed meanwhile leaves the former ones as they are. Saving a step again replaces it."""
        partial = self._folder / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        final = self._folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def latest(self) -> Path | None:
        """None where there is none."""
        return found[-1] if (found := self._all()) else None

    def _all(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if NAME.fullmatch(path.name))
