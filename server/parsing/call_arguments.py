"""The arguments of a call: whatever a model wrote for them, an object."""

import json

from server.parsing.feed import Feed, Reading, Say, Tags, read_whole
from server.parsing.json_repair import NO_TAGS, JsonCopier


def copy_arguments(feed: Feed, say: Say, closers: Tags = NO_TAGS) -> Reading[None]:
    """The arguments of a call, which begin here, as an object."""
    character = yield from feed.peek(1)
    if character == "{":
        yield from JsonCopier(feed, say, closers).copy()
        return
    pieces: list[str] = []
    yield from JsonCopier(feed, pieces.append, closers).copy()
    say(object_of("".join(pieces)))


def object_of(text: str, depth: int = 2) -> str:
    """The object that a JSON text is, or spells, or holds alone; else an empty one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "{}"
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return repaired(value, depth - 1) if isinstance(value, str) and depth else "{}"


def repaired(text: str, depth: int = 2) -> str:
    """The object that a text was to be."""
    pieces: list[str] = []
    if text.lstrip().startswith("{"):
        read_whole(text.lstrip(), lambda feed: copy_arguments(feed, pieces.append))
        return "".join(pieces)
    return object_of(text, depth)
