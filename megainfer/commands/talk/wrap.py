"""Breaking lines between words while they come."""

import re

from wcwidth import wcwidth

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
TAB = 8


class Wrapper:
    """For a terminal of so many columns, whose last one stays free: a cursor that has passed it
    can't be told where to go.

    Everything is written at once; a word that turns out not to fit is taken back and written on the
    next line. Where writing has no spaces, every wide character is a word. Styles (SGR) take no
    room.
    """

    def __init__(self, columns: int) -> None:
        self._room = max(columns - 1, 1)
        self._column = 0
        self._word = ""  # with the styles that begin in it
        self._word_begins = 0  # its column

    def push(self, text: str, keep: bool = False) -> str:
        """keep: these lines are left as they are."""
        out: list[str] = []
        at = 0
        while at < len(text):
            if found := ESCAPE.match(text, at):
                self._word += found[0]
                out.append(found[0])
                at = found.end()
                continue
            out.append(self._char(text[at], keep))
            at += 1
        return "".join(out)

    def _char(self, char: str, keep: bool) -> str:
        width = TAB - self._column % TAB if char == "\t" else max(wcwidth(char), 0)
        if char == "\n":
            self._begin_word(0)
            return char
        if keep:
            self._begin_word(self._column + width)
            return char
        if char in " \t" or width > 1:
            return self._break_or_add(char, width)
        return self._add_to_word(char, width)

    def _break_or_add(self, char: str, width: int) -> str:
        """Before this a line may end."""
        if self._column + width <= self._room:
            self._begin_word(self._column + width)
            return char
        blank = char in " \t"
        self._begin_word(0 if blank else width)
        return "\n" if blank else f"\n{char}"

    def _add_to_word(self, char: str, width: int) -> str:
        self._word += char
        self._column += width
        if self._column <= self._room or not self._word_begins:
            return char
        back = self._column - width - self._word_begins
        moved = f"\x1b[{back}D\x1b[K\n" if back else "\n"
        self._column -= self._word_begins
        self._word_begins = 0
        return moved + self._word

    def _begin_word(self, column: int) -> None:
        self._word, self._word_begins, self._column = "", column, column
