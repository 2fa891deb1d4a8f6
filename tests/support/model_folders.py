"""What a model's folder may hold to bring down whoever looks into it: attacks as data, and their
trial within bounds.

    python -m tests.support.model_folders FOLDER EVERY

tries all attacks, or every tenth where EVERY is 10, on the config.json in FOLDER, which is spoilt,
and prints what went wrong, a line each. Every attempt must end in a plan, or in an error that names
what is wrong, in a few seconds and within a memory that any machine has.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from megainfer.config import EngineConfig
from megainfer.errors import MegaInferError
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.models.description import describe_model
from megainfer.models.quantization import quantization_of
from megainfer.models.registry import load_spec
from megainfer.text.tokenizer import load_tokenizer

SECONDS = 5.0
MEMORY_BYTES = 2 * 2**30  # beside what is loaded
MEGABYTE = 2**20

# What may stand where a number does, or anything else.
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 2, 10**6, 10**9, 2**31 - 1, 2**31, 10**30, 10**400, 1.5, 1e308, float("nan"), True),
    *("", "9" * 50, [], {}, [1] * 10**5, [[]], [None], {"a": {}}, "a" * MEGABYTE),
)

Path_ = tuple[str | int, ...]


def places(value: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Where something stands in a JSON value, itself excluded."""
    children: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        children = iter(value.items())
    elif isinstance(value, list):
        children = iter(enumerate(value[:2]))
    for key, child in children:
        yield (*before, key)
        yield from places(child, (*before, key))


def changed(value: Any, place: Path_, new: Any) -> Any:
    """A copy with something else there."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


def sparse(path: Path, size: int = 2**40) -> None:
    """A file of a terabyte, or what the file system allows, which takes no room."""
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            file.truncate(2**33)


def linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def holding(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


FILES: Mapping[str, Callable[[Path], None]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "an endless device": linked("/dev/zero"),
    "a terminal": linked("/dev/tty"),
    "a folder": lambda path: path.mkdir(),
    "itself": lambda path: path.symlink_to(path.name),
    "a terabyte of nothing": sparse,
    "empty": holding(b""),
    "brackets": holding("[" * 100_000 + "]" * 100_000),
    "brackets in an object": holding('{"a":' * 100_000 + "1" + "}" * 100_000),
    "open brackets": holding('{"a":[' * 100_000),
    "a long number": holding('{"num_hidden_layers": ' + "9" * MEGABYTE + "}"),
    "no UTF-8": holding(b"\xff\xfe\x00"),
    "a byte order mark": holding(b"\xef\xbb\xbf{}"),
    "zeros": holding(b"\0" * MEGABYTE),
    "a list": holding("[]"),
    "null": holding("null"),
    "NaN": holding("NaN"),
    "many keys": holding("{" + ",".join(f'"{i}":{{}}' for i in range(200_000)) + "}"),
    "a lone surrogate": holding('{"architectures": ["\\ud800"]}'),
}
"""What may stand where a file is expected: name -> who puts it there."""

NAMES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/a.jinja", "model.safetensors.index.json"),
    *("tiktoken.model", "tekken.json"),
)


class TooLong(BaseException):
    """Nothing catches it on its way."""


def attempt(folder: Path) -> str | None:
    """What is wrong with how this folder is looked into; None if nothing is."""
    began = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
    try:
        for look in (_plan, _describe, load_tokenizer, GenerationDefaults.load):
            try:
                look(folder)
            except MegaInferError as error:
                if len(str(error)) > 10_000:
                    return f"{look.__name__} tells {len(str(error))} characters"
    except TooLong:
        return "does not end"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    spent = time.process_time() - began
    return f"takes {spent:.1f} s" if spent > SECONDS else None


def _plan(folder: Path) -> None:
    make_plan(EngineConfig(str(folder)), folder, read_machine())


def _describe(folder: Path) -> None:
    describe_model(load_spec(folder), quantization_of(folder))


def values_tried(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for place in places(config):
        for value in VALUES:
            name = f"{'.'.join(map(str, place))} = {str(value)[:40]}"
            yield name, changed(config, place, value)


def files_tried(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each name with each kind of file; there again as it was when the next one comes."""
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.is_file() else None
        for kind, put in FILES.items():
            path.unlink(missing_ok=True)
            put(path)
            yield f"{name}: {kind}", path
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if before is not None:
            path.write_bytes(before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


def main() -> None:
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    config = json.loads((folder / "config.json").read_text())
    every, tried = int(sys.argv[2]), 0
    for name, _ in islice(files_tried(folder), 0, None, every):
        tried += 1
        _try(name, folder)
    for name, spoilt in islice(values_tried(config), 0, None, every):
        tried += 1
        (folder / "config.json").write_text(json.dumps(spoilt))
        _try(name, folder)
    print(f"tried {tried}")


def _try(name: str, folder: Path) -> None:
    if problem := attempt(folder):
        print(f"{name}: {problem}", flush=True)


if __name__ == "__main__":
    main()
