"""Where a bracket that holds others ends, without knowing what is in it."""


class JsonSpan:
    """Follows the brackets of an object that comes in pieces; it begins with the first character.

    quotes: what strings may stand in. brackets: those that open and those that close.
    """

    def __init__(self, quotes: str = '"', brackets: tuple[str, str] = ("{[", "}]")) -> None:
        self._quotes = quotes
        self._openings, self._closings = brackets
        self._depth = 0
        self._quote = ""  # of the string that the last character was in
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
        if self._quote:
            if character == self._quote and not self._escaped:
                self._quote = ""
            self._escaped = not self._escaped and character == "\\"
        elif character in self._quotes:
            self._quote = character
        elif character in self._openings:
            self._depth += 1
        elif character in self._closings:
            self._depth -= 1
            self.ended = self._depth == 0
