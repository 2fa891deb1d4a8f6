"""What the grammar library says of a schema or an expression, in words that a client can act on."""

import re

MOST = 500  # characters of what it says
WORDS: tuple[tuple[str, str], ...] = (
    (r"Unsatisfiable schema: (.*)", r"it allows nothing: \1"),
    (r"Pointer '(.*?)' does not exist", r"a $ref points at #\1, where nothing is"),
    (r"Resource '(.*?)' is not present", r"a $ref points at \1, which isn't part of the schema"),
    (
        r"oneOf constraints are not supported",
        "a value may fit several schemas of a oneOf; make them exclude each other, by their types "
        "or by a constant in a property that all require, or use anyOf",
    ),
    (
        r"(?:patternProperty regexes|can't determine if patternProperty regexes) (.*) are (?:not )?"
        r"disjoint",
        r"patternProperties: a name may match both of \1; make them exclude each other",
    ),
    (
        r"min/maxProperties only supported",
        "minProperties and maxProperties are offered only where all properties are required",
    ),
    (
        r"circular references with sibling keys",
        "a $ref that leads back to itself has keywords beside it; put them where it points",
    ),
    (
        r"Failed to generate regex for (\w+) range: (.*)",
        r"bounds of this size can't be kept (\1: \2); leave them out",
    ),
    (
        r"Value for 'multipleOf' has too many digits: (\d+)",
        r"multipleOf has too many digits (\1); choose a rounder one",
    ),
    (r"NoExtensionBias", "a pattern of names is left with none"),
    (r"Unimplemented keys: \[(.*)\]", r"these keywords aren't offered: \1"),
    (
        r"regex parse error:\n *(.*?)\n[ ^]*\nerror: (.*)",
        r"the pattern \1 can't be used: \2",
    ),
)


def in_words(said: str) -> str:
    """The library's message as ours; as it is where it is none of those known."""
    for known, ours in WORDS:
        if found := re.search(known, said):
            return found.expand(ours)[:MOST]
    return said.removesuffix("\n<non-verbose/>")[:MOST]
