"""A choice's text as its reader should have it: content, reasoning and calls with ids."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megainfer.messages.requests import FinishReason
from server.openai.prompts import Prompt
from server.openai.syntax import AnswerSyntax
from server.openai.thought_counter import ThoughtCounter
from server.openai.tools import ToolUse
from server.parsing.notations import ARRAY, channels, one_call, plain
from server.parsing.offered import Offered
from server.parsing.parts import CallDelta, WholeParser
from server.parsing.reasoning import ThinkParser

TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What was added to one call; id and name come once, with its first piece."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a piece of text came to."""

    content: str
    reasoning: str
    calls: tuple[CallPiece, ...]
    finish_reason: str | None


class ChoiceReader:
    """Of one choice, piece by piece. thoughts: where the model may think."""

    def __init__(
        self, parser: WholeParser, use: ToolUse, thoughts: ThoughtCounter | None = None
    ) -> None:
        self._parser = parser
        self._use = use
        self._thoughts = thoughts
        self._has_calls = False
        self._ids: set[str] = set()

    @property
    def reasoning_tokens(self) -> int | None:
        """Of those read so far; None where the model doesn't think."""
        return self._thoughts.count if self._thoughts else None

    def read(
        self, text: str, token_ids: Sequence[int], finish_reason: FinishReason | None
    ) -> Reading:
        """token_ids: those that came with the text. finish_reason: this piece is the last."""
        parts = self._parser.push(text)
        if finish_reason is not None:
            parts.add(self._parser.finish())
        if self._thoughts:
            self._thoughts.add(token_ids, parts.reasoning, self._parser.thinking)
        wanted = [d for d in parts.calls if not (self._use.one_call and d.index)]
        calls = _joined([self._with_id(delta) for delta in wanted])
        self._has_calls = self._has_calls or bool(calls)
        return Reading(parts.content, parts.reasoning, calls, self._finish(finish_reason))

    def _with_id(self, delta: CallDelta) -> CallDelta:
        """A call's own id, unless another of this answer has it; else a new one."""
        if delta.name is None:
            return delta
        own = delta.id if delta.id not in self._ids else None
        call_id = own or f"call_{uuid.uuid4().hex[:24]}"
        self._ids.add(call_id)
        return replace(delta, id=call_id)

    def _finish(self, reason: FinishReason | None) -> str | None:
        # OpenAI's servers say "stop" where the client itself had named the function.
        if reason is FinishReason.STOP and self._has_calls and self._use.named is None:
            return TOOL_CALLS
        return reason


def reader_maker(
    syntax: AnswerSyntax, use: ToolUse, shaped: bool = False
) -> Callable[[Prompt], ChoiceReader] | None:
    """Makes a reader for each choice; None where text is just text. shaped: the answer is to look
    like something, so that channels are no part of it."""
    if syntax.channels and not shaped:
        return lambda prompt: _channel_reader(syntax, use)
    if not (syntax.thinks or use.must or (use.tools and syntax.calls)):
        return None

    def make(prompt: Prompt) -> ChoiceReader:
        inside = prompt.thinking or syntax.always_thinks
        reasoning = None
        if syntax.thinks:
            reasoning = ThinkParser(inside, syntax.think_tags, prompt.answer_tags)
        thoughts = _thought_counter(syntax) if syntax.thinks else None
        return ChoiceReader(_parser(syntax, use, reasoning), use, thoughts)

    return make


def _channel_reader(syntax: AnswerSyntax, use: ToolUse) -> ChoiceReader:
    with_calls = bool(use.tools) and syntax.calls is not None
    parser = channels(Offered(use.tools) if with_calls else None)
    return ChoiceReader(parser, use, _thought_counter(syntax))


def _thought_counter(syntax: AnswerSyntax) -> ThoughtCounter:
    return ThoughtCounter(syntax.end_token, syntax.end_of_think, syntax.decode)


def _parser(syntax: AnswerSyntax, use: ToolUse, thoughts: ThinkParser | None) -> WholeParser:
    if use.named is not None:
        return one_call(use.named, thoughts)
    if use.must:
        return ARRAY.parser(use.tools, thoughts)
    if use.tools and syntax.calls:
        return syntax.calls.parser(use.tools, thoughts)
    return plain(thoughts)


def _joined(deltas: list[CallDelta]) -> tuple[CallPiece, ...]:
    """One piece for each call that these belong to."""
    pieces: dict[int, CallPiece] = {}
    for delta in deltas:
        before = pieces.get(delta.index)
        if before is None:
            piece = CallPiece(delta.index, delta.id, delta.name, delta.arguments)
        else:
            arguments = before.arguments + delta.arguments
            piece = CallPiece(delta.index, before.id, before.name, arguments)
        pieces[delta.index] = piece
    return tuple(pieces.values())
