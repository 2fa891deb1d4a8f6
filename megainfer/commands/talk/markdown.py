"""Markdown as a terminal can show it while it comes: headings, bold, code; the rest as it is."""

import re

PLAIN, BOLD, CODE, FENCE_MARK = "", "1", "36", "2"
OPEN_PREFIX = re.compile(r"#{1,6}|`{1,2}| {1,3}")
HEADING = re.compile(r"#{1,6} +")
FENCE = re.compile(r" {0,3}```")


class Styler:
    """Puts styles (SGR) in place of marks. What might be the beginning of a mark is held back."""

    def __init__(self) -> None:
        self._held = ""
        self._begins_line = True
        self._fenced = self._heading = self._bold = self._code = False

    def push(self, text: str) -> str:
        """The text so far as it is to be written, but for what is held back."""
        self._held += text
        return self._take(at_end=False)

    def finish(self) -> str:
        """What was held back, in plain style from there on."""
        rest = self._take(at_end=True)
        self._begins_line = True
        self._fenced = self._heading = self._bold = self._code = False
        return rest + self._style()

    @property
    def fenced(self) -> bool:
        """Whether the text is inside a block of code, whose lines are as they are."""
        return self._fenced

    def _take(self, at_end: bool) -> str:
        out: list[str] = []
        while self._held:
            piece = self._line_begin(at_end) if self._begins_line else self._next(at_end)
            if piece is None:
                break
            out.append(piece)
        return "".join(out)

    def _line_begin(self, at_end: bool) -> str | None:
        if OPEN_PREFIX.fullmatch(self._held) and not at_end:
            return None
        if FENCE.match(self._held):
            line, newline, rest = self._held.partition("\n")
            if not newline and not at_end:
                return None
            self._held, self._fenced = rest, not self._fenced
            return f"\x1b[{FENCE_MARK}m{line}\x1b[0m{newline}{self._style()}"
        self._begins_line = False
        if not self._fenced and (mark := HEADING.match(self._held)):
            self._held, self._heading = self._held[mark.end() :], True
            return self._style()
        return ""

    def _next(self, at_end: bool) -> str | None:
        stop = "\n" if self._fenced else "\n`*"
        plain = next((at for at, char in enumerate(self._held) if char in stop), len(self._held))
        if plain:
            text, self._held = self._held[:plain], self._held[plain:]
            return text
        match self._held[0]:
            case "\n":
                return self._end_line()
            case "`":
                self._held, self._code = self._held[1:], not self._code
                return self._style()
        return self._stars(at_end)

    def _stars(self, at_end: bool) -> str | None:
        """Two are bold's where they stand at a word's beginning or, later, at its end."""
        if len(self._held) < 3 and self._held in ("*", "**") and not at_end and not self._bold:
            return None
        if self._held == "*" and not at_end:
            return None
        opens = not self._bold and len(self._held) > 2 and not self._held[2].isspace()
        if self._held.startswith("**") and not self._code and (self._bold or opens):
            self._held, self._bold = self._held[2:], not self._bold
            return self._style()
        taken, self._held = self._held[:1], self._held[1:]
        return taken

    def _end_line(self) -> str:
        self._held = self._held[1:]
        styled = self._heading or self._bold or self._code
        self._heading = self._bold = self._code = False
        self._begins_line = True
        return f"{self._style()}\n" if styled else "\n"

    def _style(self) -> str:
        codes = [BOLD] * (self._heading or self._bold) + [CODE] * (self._code or self._fenced)
        return f"\x1b[0;{';'.join(codes)}m" if codes else "\x1b[0m"
