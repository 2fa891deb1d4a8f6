"""An answer in the words of /v1/responses."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from megainfer.sampling import SamplingParams
from server.http.errors import ErrorReport
from server.narration.blocks import Block, Blocks, Change, Kind, Step
from server.openai.one_line import encode_line
from server.openai.piece import Piece
from server.openai.translation import Json
from server.responses.items import sealed
from server.responses.protocol import ResponsesRequest
from server.responses.response_object import response_object
from server.responses.tools import SHELL, input_of

PREFIXES = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}
DELTAS = {
    Kind.TEXT: "response.output_text",
    Kind.REASONING: "response.reasoning_text",
    Kind.CALL: "response.function_call_arguments",
}
FUNCTION, CUSTOM_INPUT = "function", "response.custom_tool_call_input"
SEALED_THOUGHTS = "reasoning.encrypted_content"


class ResponsesNarrator:
    """Events are numbered in a row; each holds its type."""

    def __init__(self, body: ResponsesRequest, params: SamplingParams, model: str) -> None:
        """params: by which the answer is made."""
        self._body = body
        self._params = params
        self._tools = body.toolbox()
        self._seals = SEALED_THOUGHTS in (body.include or ())
        self._sequence = 0
        self._head: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
        }

    def begin(self, usage: Json) -> Iterator[bytes]:
        response = self._response("in_progress", [], None)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def change(self, change: Change) -> Iterator[bytes]:
        block = change.block
        match change.step:
            case Step.OPENED:
                item = self._item(block, "in_progress")
                yield self._event(
                    "response.output_item.added", output_index=block.number, item=item
                )
                if block.kind is not Kind.CALL:
                    yield self._part("added", block)
            case Step.GREW:
                yield from self._grown(change)
            case Step.CLOSED:
                yield from self._closed(block)

    def end(self, blocks: Blocks, last: Piece, usage: Json) -> Iterator[bytes]:
        response = self.whole(blocks, last, usage)
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, report: ErrorReport) -> bytes:
        return self._event("error", code=report.code, message=report.message, param=report.param)

    def whole(self, blocks: Blocks, last: Piece, usage: Json) -> Json:
        cut = last.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        items = [self._item(block, "completed") for block in blocks.all]
        if cut and items:
            items[-1]["status"] = status
        return self._response(status, items, usage)

    def _grown(self, change: Change) -> Iterator[bytes]:
        block, place = change.block, _place(change.block)
        if block.kind is Kind.CALL and self._events_of(block) is not FUNCTION:
            return  # which is told once it is whole
        if block.kind is Kind.TEXT:
            place["logprobs"] = change.logprobs
        yield self._event(f"{DELTAS[block.kind]}.delta", delta=change.text, **place)

    def _closed(self, block: Block) -> Iterator[bytes]:
        place = _place(block)
        if block.kind is Kind.CALL:
            yield from self._closed_call(block, place)
        else:
            logprobs: Json = {"logprobs": block.logprobs} if block.kind is Kind.TEXT else {}
            yield self._event(f"{DELTAS[block.kind]}.done", text=block.text, **logprobs, **place)
            yield self._part("done", block)
        item = self._item(block, "completed")
        yield self._event("response.output_item.done", output_index=block.number, item=item)

    def _closed_call(self, block: Block, place: Json) -> Iterator[bytes]:
        match self._events_of(block):
            case "function":
                done = f"{DELTAS[Kind.CALL]}.done"
                yield self._event(done, arguments=block.text, name=block.name, **place)
            case "custom":
                text = input_of(block.text)
                yield self._event(f"{CUSTOM_INPUT}.delta", delta=text, **place)
                yield self._event(f"{CUSTOM_INPUT}.done", input=text, **place)

    def _events_of(self, block: Block) -> str:
        if block.name in self._tools.customs:
            return "custom"
        return "shell" if block.name == SHELL else FUNCTION

    def _part(self, what: str, block: Block) -> bytes:
        return self._event(f"response.content_part.{what}", part=_part(block), **_place(block))

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        counts = usage and _usage(usage)
        return response_object(self._body, self._params, self._head, status, output, counts)

    def _item(self, block: Block, status: str) -> Json:
        item: Json = {"id": f"{PREFIXES[block.kind]}_{block.token}", "status": status}
        if block.kind is Kind.CALL:
            return {**item, **self._tools.item(block.call_id, block.name, block.text)}
        content = [] if status == "in_progress" else [_part(block)]
        if block.kind is Kind.REASONING:
            thoughts = {"type": "reasoning", "summary": [], "content": content}
            return {**item, **thoughts, "encrypted_content": self._sealed(block)}
        return {**item, "type": "message", "role": "assistant", "content": content}

    def _sealed(self, block: Block) -> str | None:
        return sealed(block.text) if self._seals and block.text else None

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode_line(event) + b"\n\n"


def _place(block: Block) -> Json:
    place: Json = {"item_id": f"{PREFIXES[block.kind]}_{block.token}", "output_index": block.number}
    return place if block.kind is Kind.CALL else {**place, "content_index": 0}


def _part(block: Block) -> Json:
    if block.kind is Kind.REASONING:
        return {"type": "reasoning_text", "text": block.text}
    text = {"type": "output_text", "text": block.text, "annotations": []}
    return {**text, "logprobs": block.logprobs}


def _usage(counts: Json) -> Json:
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    thoughts = counts.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": counts["total_tokens"],
    }
