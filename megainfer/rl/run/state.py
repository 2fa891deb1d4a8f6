"""Where a run is, apart from weights and optimisers; as JSON that is read back to the bit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from megainfer.errors import CheckpointError
from megainfer.rl.samples.sample import Sample
from megainfer.small_file import read_small

MAX_BYTES = 16 * 2**30
FILE = "run.json"


@dataclass(slots=True)
class RunState:
    """step: steps that are done. version: of the policy, that is, steps that changed it. samples,
    groups: numbers of the next answer and of the next problem's answers. drawn: problems taken from
    the data so far. problems, data: how many it has, and `Prompts.digest`. running, waiting: of the
    pool. config: what the run was told.
    """

    step: int = 0
    version: int = 0
    samples: int = 0
    groups: int = 0
    drawn: int = 0
    problems: int = 0
    data: str = ""
    running: list[Sample] = field(default_factory=list)
    waiting: list[Sample] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Numbers as the shortest text that is read back as the same."""
        (folder / FILE).write_bytes(msgspec.json.encode(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises CheckpointError."""
        path = folder / FILE
        try:
            return msgspec.json.decode(read_small(path, MAX_BYTES), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error
