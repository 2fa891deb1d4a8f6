"""Reasoning between <think> and </think>, before the answer."""

from megainfer.text.detokenizer import overlap
from server.parsing.parts import Parts

THINK, END_OF_THINK = "<think>", "</think>"
MISTRAL_TAGS = ("[THINK]", "[/THINK]")


class ThinkParser:
    """Splits a text into one stretch of reasoning at its beginning, and the answer.

    inside: the reasoning has begun already, because the prompt ends in <think> or the model is one
    that always thinks. Where it hasn't, and the text doesn't begin with <think> (after white
    space), everything is the answer. tags: others in place of <think> and </think>.
    """

    def __init__(self, inside: bool, tags: tuple[str, str] = (THINK, END_OF_THINK)) -> None:
        self._inside = inside
        self._opening, self._closing = tags
        self._began = False  # whether a <think> can no longer come
        self._held = ""

    def push(self, text: str) -> Parts:
        text, self._held = self._held + text, ""
        if not self._began:
            begun = self._begin(text)
            if begun is None:
                self._held = text
                return Parts()
            text = begun
        return self._think(text) if self._inside else Parts(content=text)

    def finish(self) -> Parts:
        held, self._held = self._held, ""
        return Parts(reasoning=held) if self._inside else Parts(content=held)

    @property
    def thinking(self) -> bool | None:
        """Whether the text so far ends in reasoning; None while a <think> may be about to come."""
        return self._inside if self._inside or self._began else None

    def _begin(self, text: str) -> str | None:
        """What follows a <think> at the beginning, or everything; None while that is open."""
        start = text.lstrip()
        if self._opening.startswith(start) and start != self._opening:
            return None
        self._began = True
        self._inside = self._inside or start.startswith(self._opening)
        return start.removeprefix(self._opening) if start.startswith(self._opening) else text

    def _think(self, text: str) -> Parts:
        reasoning, end, answer = text.partition(self._closing)
        if end:
            self._inside = False
            return Parts(content=answer, reasoning=reasoning)
        border = len(text) - overlap(text, self._closing)
        self._held = text[border:]
        return Parts(reasoning=text[:border])


def ends_in_thinking(prompt: str) -> bool:
    """Whether a prompt leaves the model inside its reasoning."""
    return prompt.rstrip().endswith(THINK)
