"""The files of one model: a single one, or the parts into which it was split.

A part is called NAME-00002-of-00003.gguf. The first has the metadata, each says which it is.
"""

import re
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.gguf.header import Header, read_header

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 1000


def gguf_files(place: Path) -> tuple[Path, ...]:
    """The model's files in order. place: one of them, or a folder that holds nothing else of GGUF.

    Raises ModelError, naming it, where there is none, a part is missing, or there are several.
    """
    if not place.is_dir():
        return _parts_of(place)
    found = sorted(place.glob(f"*{SUFFIX}"))
    if not found:
        raise ModelError(f"{place} holds no *{SUFFIX} file")
    files = _parts_of(found[0])
    if others := [path for path in found if path not in files]:
        raise ModelError(
            f"{place} holds several models, {found[0].name} and {others[0].name} among them; name "
            "the file of the one that is to be served"
        )
    return files


def _parts_of(path: Path) -> tuple[Path, ...]:
    if not path.is_file():
        raise ModelError(f"{path} is no file")
    name = PART.fullmatch(path.name)
    if name is None:
        return (path,)
    count = int(name["count"])
    if not 1 <= int(name["number"]) <= count <= MAX_PARTS:
        raise ModelError(f"{path} is no part of 1 to {MAX_PARTS}")
    files = [
        path.with_name(f"{name['stem']}-{number:05}-of-{count:05}{SUFFIX}")
        for number in range(1, count + 1)
    ]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{path} is one of {count} parts, and {file.name} is not beside it")
    return tuple(files)


def read_headers(files: tuple[Path, ...]) -> tuple[Header, ...]:
    """Of all parts. Raises CheckpointError as `read_header`, ModelError where a file says that it
    is another part than it is called."""
    headers = tuple(map(read_header, files))
    for number, header in enumerate(headers):
        count = header.metadata.get("split.count", 1 if len(files) == 1 else None)
        said = header.metadata.get("split.no", 0 if len(files) == 1 else None)
        if (said, count) not in ((number, len(files)), (0, 0)):
            raise ModelError(
                f"{header.path} says that it is part {said} (from 0) of {count}, but must be "
                f"part {number} of {len(files)}; name the model's first part, called as it was "
                "when it was split"
            )
    return headers
