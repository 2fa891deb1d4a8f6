"""Tags around an answer, which some models write once they have thought (Hunyuan, Ernie)."""

from megainfer.text.detokenizer import overlap

PAIRS = {"<answer>": "</answer>", "<response>": "</response>"}


class AnswerTags:
    """Leaves out one of these tags at a text's beginning, and the one that closes it at its end."""

    def __init__(self, openings: tuple[str, ...]) -> None:
        self._openings = openings
        self._begun = False
        self._closing = ""  # which is to be left out
        self._white: list[str] = []  # held back: before the tag
        self._tag = ""  # as much of it as there is
        self._after: list[str] = []  # white space behind it
        self._line_end = False  # may follow the opening tag

    def push(self, text: str) -> str:
        """What is certain by now."""
        if not self._begun:
            return self._begin(self._tag + text)
        return self._without_closing(text) if self._closing else text

    def finish(self) -> str:
        """What was held back and isn't the closing tag."""
        is_tag = self._begun and self._tag in (self._closing, "")
        return "" if self._drop_white() and is_tag else self._release()

    def interrupt(self) -> str:
        """The same where something else than text comes."""
        held = self.finish()
        self._release()
        self._begun = True
        return held

    def _drop_white(self) -> bool:
        return bool(self._closing)

    def _begin(self, text: str) -> str:
        start = text.lstrip()
        self._white.append(text[: len(text) - len(start)])
        if any(opening.startswith(start) and start != opening for opening in self._openings):
            self._tag = start
            return ""
        self._begun, self._tag = True, ""
        opening = next((tag for tag in self._openings if start.startswith(tag)), None)
        if opening is None:
            return self._release() + start
        self._release()
        self._closing = PAIRS[opening]
        self._line_end = True
        return self._without_closing(start.removeprefix(opening))

    def _without_closing(self, text: str) -> str:
        if self._line_end and text:
            text, self._line_end = text.removeprefix("\n"), False
        if self._tag == self._closing:
            if not text.strip():
                self._after.append(text)
                return ""
            text = self._release() + text
        elif self._tag:
            text, self._tag = self._tag + text, ""
        words = text.rstrip()
        after = text[len(words) :]
        if words.endswith(self._closing):
            self._after, size = [after], len(self._closing)
        else:
            size = 0 if after else overlap(words, self._closing)
        self._tag = words[len(words) - size :]
        return self._held_from(words[: len(words) - size], after if not size else "")

    def _held_from(self, text: str, after: str) -> str:
        """White space at the end is held, behind what was held before."""
        words = text.rstrip()
        given = "".join((*self._white, words)) if words or (not self._tag and not after) else ""
        if words:
            self._white = []
        self._white += [text[len(words) :], after]
        return given if words else ""

    def _release(self) -> str:
        held = "".join((*self._white, self._tag, *self._after))
        self._white, self._tag, self._after = [], "", []
        return held
