"""Reasoning between <think> and </think>, before the answer."""

from megainfer.text.detokenizer import overlap
from server.parsing.parts import Parts
from server.parsing.wrapped import AnswerTags

THINK, END_OF_THINK = "<think>", "</think>"
MISTRAL_TAGS = ("[THINK]", "[/THINK]")


class ThinkParser:
    """Splits a text into one stretch of reasoning at its beginning, and the answer.

    inside: the reasoning has begun already, because the prompt ends in <think> or the model is one
    that always thinks. Where it hasn't, and the text doesn't begin with <think> (after white
    space), everything is the answer. tags: others in place of <think> and </think>. around: tags
    that are left out where they enclose the answer, once the model has thought.
    """

    def __init__(
        self,
        inside: bool,
        tags: tuple[str, str] = (THINK, END_OF_THINK),
        around: tuple[str, ...] = (),
    ) -> None:
        self._inside = inside
        self.tags = tags
        self._opening, self._closing = tags
        self._began = False  # whether a <think> can no longer come
        self._white: list[str] = []  # at the very beginning
        self._held = ""
        self._around = around
        self._interrupted = False
        self._answer: AnswerTags | None = None

    def push(self, text: str) -> Parts:
        text, self._held = self._held + text, ""
        if not self._began:
            start = text.lstrip()
            self._white.append(text[: len(text) - len(start)])
            if self._opening.startswith(start) and start != self._opening:
                self._held = start
                return Parts()
            text = self._begin(start)
        return self._think(text) if self._inside else Parts(content=self._said(text))

    def finish(self) -> Parts:
        held = self._release()
        if self._inside:
            return Parts(reasoning=held)
        return Parts(content=held + (self._answer.finish() if self._answer else ""))

    def interrupt(self) -> Parts:
        """Something else than text came, which ends the reasoning. What was held back."""
        held = self._release()
        self._interrupted = self._interrupted or self._inside
        parts = Parts(reasoning=held) if self._inside else Parts(content=held)
        self._inside, self._began = False, True
        if self._answer:
            parts.content += self._answer.interrupt()
        return parts

    @property
    def thinking(self) -> bool | None:
        """Whether the text so far ends in reasoning; None while a <think> may be about to come."""
        return self._inside if self._inside or self._began else None

    @property
    def interrupted(self) -> bool:
        """Whether reasoning was ended by something else than its tag, which may come later."""
        return self._interrupted

    def _begin(self, start: str) -> str:
        """What follows a <think> at the beginning, or everything."""
        self._began = True
        white, self._white = "".join(self._white), []
        if not start.startswith(self._opening):
            return white + start
        self._inside = True
        return start.removeprefix(self._opening)

    def _think(self, text: str) -> Parts:
        reasoning, end, answer = text.partition(self._closing)
        if end:
            self._inside = False
            self._answer = AnswerTags(self._around) if self._around else None
            return Parts(content=self._said(answer), reasoning=reasoning)
        border = len(text) - overlap(text, self._closing)
        self._held = text[border:]
        return Parts(reasoning=text[:border])

    def _release(self) -> str:
        held = "".join((*self._white, self._held))
        self._white, self._held = [], ""
        return held

    def _said(self, text: str) -> str:
        return self._answer.push(text) if self._answer else text


def ends_in_thinking(prompt: str) -> bool:
    """Whether a prompt leaves the model inside its reasoning."""
    return prompt.rstrip().endswith(THINK)
