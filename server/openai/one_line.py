"""JSON that is one line to everybody, as an event's `data:` has to be."""

import msgspec

encode = msgspec.json.Encoder().encode
SEPARATORS = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)
"""JSON may hold them raw, but much that reads lines, such as Python's `str.splitlines`, ends one
there; the other characters that it knows are control characters, which are escaped anyway."""


def encode_line(value: object) -> bytes:
    """
    >>> encode_line("a\\u2028b")
    b'"a\\\\u2028b"'
    """
    data = encode(value)
    if data.isascii():
        return data
    for raw, escaped in SEPARATORS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data
