"""Preparing a model in a process of its own.

Downloading and converting start threads that stay, and the supervisor must have none when it forks.
`python -m megainfer.model_folder.prepare` is the other half.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
from rich.console import Console

from megainfer.console.terminal import ModelProgress
from megainfer.errors import ModelError
from megainfer.model_folder.resolve import ModelSource, resolve_model


class Answer(msgspec.Struct):
    """What the other process found: a folder, or why there is none."""

    folder: str | None = None
    error: str | None = None


def prepare(source: ModelSource) -> Path:
    """The folder of a model as `resolve_model` has it; shows progress where it takes a while.

    Raises ModelError.
    """
    if source.is_ready:
        return resolve_model(source, lambda stage, fraction: None)
    answer = _ask(source)
    if answer.folder is None:
        raise ModelError(answer.error or "preparing the model ended without an answer")
    return Path(answer.folder)


def _ask(source: ModelSource) -> Answer:
    """Bounded by the time limits of what the other process does."""
    reader, writer = os.pipe()
    asked = msgspec.json.encode(source).decode()
    argv = [sys.executable, "-m", "megainfer.model_folder.prepare", str(writer), asked]
    with subprocess.Popen(argv, pass_fds=[writer]):
        os.close(writer)
        with open(reader, "rb") as pipe:
            data = pipe.read()
    return msgspec.json.decode(data, type=Answer) if data else Answer()


def main(writer: int, source: ModelSource) -> None:
    """Resolve and answer; an interrupt needs no answer."""
    with suppress(KeyboardInterrupt), open(writer, "wb") as pipe:
        try:
            with ModelProgress(Console(highlight=False)) as progress:
                answer = Answer(folder=str(resolve_model(source, progress)))
        except ModelError as error:
            answer = Answer(error=str(error))
        pipe.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=ModelSource))
