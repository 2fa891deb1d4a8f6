"""The tools that a model was told of: what it may call, and how it spells their names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megainfer.structured.schema import SchemaReader

Tools = Sequence[Mapping[str, Any]]
PREFIXES = ("functions", "function", "tools", "tool", "default_api")
BEFORE = re.compile(rf"(?:{'|'.join(PREFIXES)})[./:]")
GLUED = re.compile(r"functions_?")
NUMBER = re.compile(r"_?\d{1,9}$")
"""Kimi's ids where clients have changed those that it saw: `functions_f_0`, `functionsf0`."""
BEHIND = re.compile(r"(?::\d{1,9}|(?:<\|constrain\|>)?(?:json|code))$")
NAME = re.compile(r"[^\s\"'`<>{}\[\]\\,()=｜|]{1,128}")
"""None of the characters with which a notation could go on."""


class Offered:
    """Without any tools every name is one."""

    def __init__(self, tools: Tools) -> None:
        functions = [tool["function"] for tool in tools]
        self._schemas: dict[str, SchemaReader] = {
            f["name"]: SchemaReader(f.get("parameters")) for f in functions
        }
        self._plain: dict[str, list[str]] = {}
        for name in self._schemas:
            self._plain.setdefault(_plain(name), []).append(name)

    def match(self, written: str) -> str | None:
        """The tool that is meant: the very name; without what models put around it; or the only
        one that differs in nothing but capitals, dashes and dots."""
        word = written.strip().strip("\"'`")
        if not self._schemas:
            return word if NAME.fullmatch(word) else None
        for candidate in _candidates(word):
            if candidate in self._schemas:
                return candidate
        for candidate in _candidates(word):
            if len(alike := self._plain.get(_plain(candidate), [])) == 1:
                return alike[0]
        return None

    def beginning(self, written: str) -> str | None:
        """The tool with whose name a text begins that goes on with that of a parameter."""
        for name, schema in self._schemas.items():
            if written.startswith(name) and written[len(name) :] in schema.names(schema.root):
                return name
        return None

    def schema(self, name: str) -> SchemaReader:
        """Of a tool's parameters."""
        return self._schemas.get(name) or SchemaReader(None)


def _candidates(word: str) -> list[str]:
    bare = BEFORE.sub("", word, count=1) if BEFORE.match(word) else word
    glued = GLUED.sub("", word, count=1)
    return [
        *(word, bare, BEHIND.sub("", word), BEHIND.sub("", bare)),
        *(NUMBER.sub("", bare), glued, NUMBER.sub("", glued)),
    ]


def _plain(name: str) -> str:
    return re.sub(r"[-_./:]", "_", name).casefold()
