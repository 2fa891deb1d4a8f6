"""Requests as bytes: of an address's kind, damaged or not, in HTTP or nearly so."""

import copy
import gzip
import json
from dataclasses import dataclass
from random import Random
from typing import Any

from pydantic import BaseModel

from server.anthropic.protocol import CountRequest, MessagesRequest
from server.openai.protocol import ChatRequest, CompletionRequest
from server.openai.tokens import DetokenizeRequest, TokenizeRequest
from server.operate.broadcasts import (
    BroadcastRequest,
    GroupRequest,
    LeaveRequest,
    TransferRequest,
    UpdateRequest,
)
from server.operate.changes import NodeRequest, RestartRequest, ScaleRequest
from server.operate.rollouts import ContinueRequest, DiskRequest, PauseRequest
from server.page.assets import PAGE
from server.responses.protocol import ResponsesRequest
from tests.support.api_fields import CHATS, COMPLETIONS, MESSAGES, RESPONSES, SCHEMA, TOOL, Fields
from tests.support.fuzzing.damage import damage, damaged_bytes
from tests.support.fuzzing.values import TEXTS, Json, body_of

SAID: list[Json] = [
    {"role": "user", "content": "else"},
    {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
    {"role": "assistant", "content": "so", "prefix": True},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "1"},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]},
]
BLOCKS: list[Json] = [
    {"role": "user", "content": [{"type": "text", "text": "else"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]},
]
ITEMS: list[Json] = [
    {"type": "message", "role": "user", "content": "else"},
    {"role": "user", "content": [{"type": "input_text", "text": "else"}]},
    {"type": "reasoning", "id": "r", "summary": [], "content": []},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
]
PROMPTS: list[Any] = ["else", ["a", "b"], [1, 2, 3], [[1], [2, 3]], "some words " * 40]
TOOLS: list[Json] = [
    {"type": "function", "name": "f", "parameters": SCHEMA},
    {"type": "custom", "name": "c"},
    {"type": "local_shell"},
    {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
    {"type": "web_search"},
]
NAMED: list[Any] = ["auto", "required", {"type": "allowed_tools", "tools": [{"name": "f"}]}]
CHOICES: list[Any] = ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]


def _known(fields: Fields, **more: list[Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, (value, _) in fields.items()} | more


KINDS: dict[str, tuple[type[BaseModel], dict[str, list[Any]]]] = {
    "/v1/completions": (CompletionRequest, _known(COMPLETIONS, prompt=PROMPTS)),
    "/v1/chat/completions": (
        ChatRequest,
        _known(CHATS, messages=[SAID, SAID[:1], SAID[:3], SAID[:2]], tool_choice=CHOICES),
    ),
    "/v1/responses": (
        ResponsesRequest,
        _known(RESPONSES, input=["else", ITEMS, ITEMS[:1]], tools=[TOOLS], tool_choice=NAMED),
    ),
    "/v1/messages": (
        MessagesRequest,
        _known(MESSAGES, messages=[BLOCKS, BLOCKS[:1]], max_tokens=[3, 60]),
    ),
    "/v1/messages/count_tokens": (CountRequest, {"messages": [BLOCKS, BLOCKS[:1]]}),
    "/tokenize": (TokenizeRequest, {"prompt": PROMPTS, "messages": [SAID]}),
    "/detokenize": (DetokenizeRequest, {"tokens": [[1, 2], []]}),
    "/admin/scale": (ScaleRequest, {"attn": [1, 2]}),
    "/admin/drain": (NodeRequest, {"node": ["attention node 0", "expert-1"]}),
    "/admin/restart": (RestartRequest, {"node": ["expert node 0"]}),
    "/update_weights_from_disk": (DiskRequest, {"model_path": ["/nowhere", "model"]}),
    "/init_weights_update_group": (GroupRequest, {"backend": ["none"]}),
    "/update_weights_from_distributed": (BroadcastRequest, {"dtypes": [["bfloat16"], ["x"]]}),
    "/destroy_weights_update_group": (LeaveRequest, {}),
    "/init_weight_transfer_engine": (TransferRequest, {}),
    "/update_weights": (UpdateRequest, {}),
    "/pause_generation": (PauseRequest, {"mode": ["abort", "retract", "in_place"]}),
    "/continue_generation": (ContinueRequest, {}),
}
READ = (
    *("/v1/models", "/v1/models/tiny", "/live", "/health", "/ping", "/ready", "/metrics", "/load"),
    *("/is_paused", "/get_world_size", "/weight_version", "/get_weight_version"),
    *("/version", "/server_info", "/admin/nodes", "/debug/nodes", "/debug/trace?seconds=0.01"),
    *("/docs", "/openapi.json", "/page/state", "/page/timeline", "/tokenizer_info", *PAGE),
)
PATHS = ("/", "//", "/v1", "/v2/completions", "/..;/admin/nodes", "/%2e%2e/server_info", "*")
METHODS = (
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "post",
    "PRI",
    "X-1",
)


@dataclass(frozen=True, slots=True)
class Shot:
    """raw: what is written to a connection of its own. answered: whether HTTP asks for an answer;
    of what isn't whole there may be none. what: it was, for whoever reads of a failure."""

    raw: bytes
    what: str
    answered: bool = True


class Maker:
    """Shots, the same ones for the same seed. keys: that open the API; admin_keys: all."""

    def __init__(self, seed: int, keys: tuple[str, ...] = (), admin_keys: tuple[str, ...] = ()):
        self._random = Random(seed)
        self._keys = (*keys, *admin_keys)
        self._admin_keys = admin_keys
        self._bodies = [*KINDS, *list(KINDS)[:4] * 3]  # those that do most, most often

    def shot(self) -> Shot:
        """The next one."""
        random = self._random
        if random.random() < 0.08:
            return self._spelled("GET", random.choice(READ), b"")
        path = random.choice(self._bodies)
        model, known = KINDS[path]
        body = body_of(model, random, copy.deepcopy(known))
        if path == "/v1/chat/completions" and random.random() < 0.3:
            body["tools"] = [TOOL]
        if random.random() < 0.7:
            body = damage(body, random)
        text = json.dumps(body).encode()
        if random.random() < 0.08:
            text = damaged_bytes(text, random)
        return self._spelled("POST", path, text)

    def _spelled(self, method: str, path: str, body: bytes) -> Shot:
        """With well-formed HTTP around it; now and then with some that isn't."""
        random, headers = self._random, self._headers(path, body)
        if random.random() < 0.05:
            method = random.choice(METHODS)
        if random.random() < 0.03:
            path = self._bent(path)
        answered = True
        if random.random() < 0.1:
            body, answered = self._bend_headers(headers, body)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass")
        return Shot(head + body, f"{method} {path[:80]} {body[:3000]!r}", answered)

    def _headers(self, path: str, body: bytes) -> list[tuple[str, str]]:
        random = self._random
        headers = [("Host", "localhost"), ("Connection", "close")]
        if body or random.random() < 0.5:
            headers += [("Content-Length", str(len(body))), ("Content-Type", "application/json")]
        if self._keys and random.random() < 0.97:
            inside = path.startswith(("/admin", "/debug", "/page", "/server", "/metrics"))
            key = random.choice(self._admin_keys if inside else self._keys)
            name = random.choice(("Authorization", "x-api-key"))
            headers.append((name, f"Bearer {key}" if name == "Authorization" else key))
        return headers

    def _bent(self, path: str) -> str:
        random = self._random
        return random.choice(
            (
                path + "/",
                "/" + path,
                path.upper(),
                path + "?" + "a=%00&" * random.choice((1, 1000)),
                path.replace("v1", "%761"),
                path + "%ff%fe",
                "http://elsewhere" + path,
                path + "/" + "a" * random.choice((10, 5000)),
                random.choice(PATHS),
            )
        )

    def _bend_headers(self, headers: list[tuple[str, str]], body: bytes) -> tuple[bytes, bool]:
        """The body as it is sent then, and whether the request is whole."""
        random = self._random
        names = [name for name, _ in headers]
        pick = random.randrange(8)
        if pick == 0 and "Content-Length" in names:
            size = random.choice(("0", "-1", "+3", "1e3", "9" * 30, str(len(body) + 9), ""))
            headers[names.index("Content-Length")] = ("Content-Length", size)
            return body, False
        if pick == 1:
            headers[:] = [h for h in headers if h[0] != "Content-Length"]
            headers.append(("Transfer-Encoding", random.choice(("chunked", "chunked", "gzip"))))
            return _chunked(body, random), False
        if pick == 2:
            headers.append(("Content-Encoding", random.choice(("gzip", "br", "identity"))))
            body = gzip.compress(body)
            headers[:] = [h for h in headers if h[0] != "Content-Length"]
            headers.append(("Content-Length", str(len(body))))
            return body, True
        if pick == 3:
            kind = random.choice(("text/plain", "", "application/json; charset=utf-16", "x" * 999))
            headers[:] = [h for h in headers if h[0] != "Content-Type"]
            headers.append(("Content-Type", kind))
            return body, True
        if pick == 4:
            headers.append((random.choice(("Expect", "Accept", "Cookie", "Range")), "100-continue"))
            return body, True
        if pick == 5:
            headers.append(("X-Request-Id", random.choice(TEXTS).translate(NO_LINES)))
            return body, False  # some of them no header may hold
        if pick == 6:
            headers += [("Origin", "http://elsewhere"), ("Sec-Fetch-Site", "cross-site")]
            return body, True
        headers.append(random.choice(headers))
        return body, False


NO_LINES = {10: " ", 13: " "}


def _chunked(body: bytes, random: Random) -> bytes:
    parts, at = b"", 0
    while at < len(body):
        size = random.choice((1, 7, 100, len(body)))
        part = body[at : at + size]
        parts += f"{len(part):x}".encode() + b"\r\n" + part + b"\r\n"
        at += size
    return parts + random.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"zz\r\n", b""))
