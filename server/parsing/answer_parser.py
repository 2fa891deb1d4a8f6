"""A model's whole answer: its reasoning first, then text and tool calls."""

from server.parsing.parts import Parser, Parts
from server.parsing.reasoning import ThinkParser


class AnswerParser:
    """Gives what isn't reasoning to the parser of calls; either may be None."""

    def __init__(self, reasoning: ThinkParser | None, calls: Parser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def push(self, text: str) -> Parts:
        split = self._reasoning.push(text) if self._reasoning else Parts(content=text)
        return self._with_calls(split)

    def finish(self) -> Parts:
        parts = self._with_calls(self._reasoning.finish()) if self._reasoning else Parts()
        if self._calls:
            parts.add(self._calls.finish())
        return parts

    @property
    def thinking(self) -> bool | None:
        """See `ThinkParser.thinking`."""
        return self._reasoning.thinking if self._reasoning else False

    def _with_calls(self, split: Parts) -> Parts:
        if self._calls is None:
            return split
        parts = self._calls.push(split.content)
        parts.reasoning = split.reasoning + parts.reasoning
        return parts
