"""Where a JSON object ends, without knowing what is in it."""


class JsonSpan:
    """Follows the braces of an object that comes in pieces; it begins with the first character."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.ended = False

    def take(self, text: str) -> str:
        """The beginning of `text` that belongs to the object: all of it until it has ended."""
        for position, character in enumerate(text):
            self._step(character)
            if self.ended:
                return text[: position + 1]
        return text

    def _step(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = not self._escaped and character == "\\"
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.ended = self._depth == 0
