"""An answer in the words of /v1/messages."""

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from server.http.anthropic_errors import error_object
from server.http.errors import ErrorReport
from server.narration.blocks import Block, Blocks, Change, Kind, Step
from server.openai.one_line import encode_line
from server.openai.piece import Piece
from server.openai.translation import Json


class MessagesNarrator:
    """Blocks are opened, grow and are closed, in between the beginning and the end of a message."""

    def __init__(self, model: str) -> None:
        self._head: Json = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def begin(self, usage: Json) -> Iterator[bytes]:
        counts = {**_usage(usage), "output_tokens": 0}
        ending = {"stop_reason": None, "stop_sequence": None}
        message = {**self._head, "content": [], **ending, "usage": counts}
        yield _event("message_start", message=message)

    def change(self, change: Change) -> Iterator[bytes]:
        index = change.block.number
        match change.step:
            case Step.OPENED:
                yield _event(
                    "content_block_start", index=index, content_block=_opened(change.block)
                )
            case Step.GREW:
                yield _event("content_block_delta", index=index, delta=_delta(change))
            case Step.CLOSED:
                yield _event("content_block_stop", index=index)

    def end(self, blocks: Blocks, last: Piece, usage: Json) -> Iterator[bytes]:
        yield _event("message_delta", delta=_ending(blocks, last), usage=_usage(usage))
        yield _event("message_stop")

    def fail(self, report: ErrorReport) -> bytes:
        return _event("error", error=error_object(report.status, report.message))

    def whole(self, blocks: Blocks, last: Piece, usage: Json) -> Json:
        content = [_whole(block) for block in blocks.all]
        return {**self._head, "content": content, **_ending(blocks, last), "usage": _usage(usage)}


def _ending(blocks: Blocks, last: Piece) -> Json:
    by_string = last.stop_reason if isinstance(last.stop_reason, str) else None
    if last.finish_reason == "length":
        reason = "max_tokens"
    elif any(block.kind is Kind.CALL for block in blocks.all):
        reason = "tool_use"
    else:
        reason = "end_turn" if by_string is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": by_string}


def _opened(block: Block) -> Json:
    match block.kind:
        case Kind.TEXT:
            return {"type": "text", "text": ""}
        case Kind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Kind.CALL:
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _delta(change: Change) -> Json:
    match change.block.kind:
        case Kind.TEXT:
            return {"type": "text_delta", "text": change.text}
        case Kind.REASONING:
            return {"type": "thinking_delta", "thinking": change.text}
        case Kind.CALL:
            return {"type": "input_json_delta", "partial_json": change.text}


def _whole(block: Block) -> Json:
    whole = _opened(block)
    match block.kind:
        case Kind.TEXT:
            return {**whole, "text": block.text}
        case Kind.REASONING:
            return {**whole, "thinking": block.text}
        case Kind.CALL:
            return {**whole, "input": msgspec.json.decode(block.text)}


def _usage(counts: Json) -> Json:
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts["completion_tokens"],
    }


def _event(kind: str, **fields: Any) -> bytes:
    return (
        b"event: " + kind.encode() + b"\ndata: " + encode_line({"type": kind, **fields}) + b"\n\n"
    )
