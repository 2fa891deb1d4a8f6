"""One choice of an answer, or a piece of one, before it takes the shape of an API."""

from dataclasses import dataclass
from typing import Any

from megainfer.frontend.outputs import WeightSpan
from megainfer.messages.routed_experts import RoutedExperts
from server.openai.reader import CallPiece


@dataclass(frozen=True, slots=True)
class Piece:
    """A choice as a whole, or what one delta adds to it.

    calls: tool calls, or pieces of them. stop_reason: the stop string or stop token id that ended
    it. logprobs: in the API's own form, None where there are none. token_ids: None where they
    aren't wanted. weights: which weights made its tokens, in their order. routed: what
    tokens' gates chose, where that is wanted.
    """

    index: int
    text: str
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None
    weights: tuple[WeightSpan, ...] = ()
    routed: RoutedExperts | None = None
