"""What a client may try against the server: each attack with what must hold of it.

Only data: `tests.support.attacking` carries them out, for the tests and for
`benchmarks/attacks.py`. To add one, add a line to `ATTACKS`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Make = Callable[[], Json | bytes]

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
JSON_TYPE = {"Content-Type": "application/json"}
TAKEN = frozenset({200, 503})
REFUSED = frozenset({400, 413, 422})
ANY = TAKEN | REFUSED
MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Attack:
    """name: what is tried. finding: which kind it belongs to. body: of a POST, made when it is
    needed, since some are megabytes; bytes are sent as they are. raw: instead of a request, what is
    written to a connection. times: so many at once, each on a connection of its own. stays: the
    attacker keeps its connections until somebody else was served, and leaves then. leaves: it hangs
    up as soon as all is sent. statuses: what may be answered. most_bytes: of an answer. slow: only
    in the full run.
    """

    name: str
    finding: str
    body: Make | None = None
    path: str = COMPLETION
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: Callable[[], bytes] | None = None
    times: int = 1
    stays: bool = False
    leaves: bool = False
    statuses: frozenset[int] = ANY
    most_bytes: int = 64 * MEGABYTE
    slow: bool = False


def completion(**fields: Any) -> Json:
    return {"prompt": [1], "max_tokens": 4, **fields}


def chat(**fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **fields}


def filled(
    name: str, filling: bytes, size: int, around: tuple[bytes, bytes] = (b"[", b"]")
) -> bytes:
    """A completion with a field of about so many bytes, spelled without building it."""
    inside = (filling * (size // len(filling))).rstrip(b",")
    head = b'{"prompt": [1], "max_tokens": 1, "' + name.encode() + b'": '
    return head + around[0] + inside + around[1] + b"}"


def many_messages(count: int) -> bytes:
    inside = b",".join([b'{"role": "user", "content": ""}'] * count)
    return b'{"max_tokens": 1, "messages": [' + inside + b"]}"


def letters(count: int) -> str:
    """Without a pattern that a compiler could make use of."""
    return "".join(chr(97 + (i * i * 7 + i // 13) % 26) for i in range(count))


def regex(expression: str) -> Json:
    return completion(structured_outputs={"regex": expression})


def literal(size: int) -> Make:
    return lambda: regex(letters(size))


def full_of(name: str, filling: bytes, size: int) -> Make:
    return lambda: filled(name, filling, size)


def head_of(size: int, complete: bool = True) -> bytes:
    start = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"a" * size
    return start + (b"\r\n\r\n" if complete else b"")


def request_bytes(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode() + body


SMUGGLED = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"

ATTACKS: tuple[Attack, ...] = (
    # --- many sequences ------------------------------------------------------------------------
    Attack(
        "4096 endless sequences in one request",
        "H1",
        lambda: completion(prompt=[[1]] * 32, n=128, max_tokens=200, ignore_eos=True, stream=True),
        stays=True,
    ),
    Attack(
        "as many sequences as are taken, in small requests",
        "H1",
        lambda: completion(n=64, max_tokens=200, ignore_eos=True, stream=True),
        times=64,
        stays=True,
    ),
    Attack(
        "2048 prompts at once",
        "H1",
        lambda: completion(prompt=[[1]] * 2048, max_tokens=1),
    ),
    Attack(
        "long prompts, each 128 times",
        "M1",
        lambda: completion(prompt=[[1] * 200] * 32, n=128, max_tokens=2, stream=True),
        stays=True,
    ),
    Attack(
        "a million token ids 128 times",
        "M1",
        lambda: completion(prompt=[[1] * 32_767] * 32, n=128),
        statuses=REFUSED,
    ),
    # --- texts ---------------------------------------------------------------------------------
    Attack("a text of 31 MB", "H3", lambda: completion(prompt="x " * (31 * MEGABYTE // 2))),
    Attack(
        "a text of 31 MB to be cut",
        "H3",
        lambda: completion(prompt="x " * (31 * MEGABYTE // 2), truncate_prompt_tokens=4),
    ),
    Attack(
        "as long a text as is read, to be cut",
        "H3",
        lambda: completion(prompt="x " * 40_000, truncate_prompt_tokens=4),
        times=8,
        leaves=True,
    ),
    Attack(
        "a chat of 31 MB",
        "H3",
        lambda: chat(messages=[{"role": "user", "content": "x " * (31 * MEGABYTE // 2)}]),
        path=CHAT,
    ),
    Attack(
        "2048 texts",
        "H3",
        lambda: completion(prompt=["x " * 100] * 2048, max_tokens=1),
    ),
    Attack(
        "a text of 31 MB to be tokenized",
        "H3",
        lambda: {"prompt": "x " * (31 * MEGABYTE // 2)},
        path="/tokenize",
    ),
    Attack(
        "a million tokens to be detokenized",
        "H3",
        lambda: {"tokens": [1] * MEGABYTE},
        path="/detokenize",
    ),
    # --- grammars ------------------------------------------------------------------------------
    Attack(
        "a literal of 250,000 letters as a choice",
        "H2",
        lambda: completion(structured_outputs={"choice": [letters(250_000)]}),
    ),
    Attack("a literal of 250,000 letters as a regex", "H2", lambda: regex(letters(250_000))),
    *(
        Attack(f"a different literal of {size} letters", "H2", literal(size))
        for size in (150_001, 150_002, 150_003)
    ),
    Attack("nested repetition", "M7", lambda: regex("(a{1000}){1000}")),
    Attack(
        "an enum of 5,000 objects",
        "M7",
        lambda: completion(
            structured_outputs={"json": {"enum": [{"a": i, "b": [i]} for i in range(5000)]}}
        ),
    ),
    Attack(
        "a Lark rule repeated a million times",
        "M7",
        lambda: completion(structured_outputs={"grammar": 'start: "a"{1000000}'}),
    ),
    Attack(
        "bad grammars, and nobody waits for them",
        "M3",
        lambda: regex("(a|b)*a(a|b){200}" * 40),
        times=30,
        leaves=True,
    ),
    Attack(
        "a schema of a hundred thousand values",
        "M3",
        lambda: completion(structured_outputs={"json": {"enum": list(range(100_000))}}),
    ),
    # --- sampling ------------------------------------------------------------------------------
    Attack(
        "16 stop strings of 1,024 letters in 64 sequences",
        "M2",
        lambda: completion(
            prompt="a", n=64, stop=["a" * 1023 + chr(98 + i) for i in range(16)], max_tokens=100
        ),
    ),
    Attack(
        "128 bad words of 256 letters in 64 sequences",
        "L15",
        lambda: completion(n=64, bad_words=["ab" * 127 + chr(97 + i % 26) for i in range(128)]),
    ),
    Attack(
        "1,024 biases in 128 sequences",
        "L15",
        lambda: completion(n=128, logit_bias={str(i): 1 for i in range(1024)}),
    ),
    Attack(
        "a million token ids that may come next",
        "L15",
        lambda: completion(allowed_token_ids=[1] * MEGABYTE),
        statuses=REFUSED,
    ),
    Attack(
        "all log-probabilities that an answer may hold",
        "L15",
        lambda: completion(prompt=[[1] * 200] * 64, prompt_logprobs=20, logprobs=20, n=2),
    ),
    # --- bodies --------------------------------------------------------------------------------
    *(
        Attack(
            f"30 MB of {filling!r} in {name}",
            "M6",
            full_of(name, filling, 30 * MEGABYTE),
        )
        for name, filling in (
            ("unknown", b"{},"),
            ("metadata", b"[],"),
            ("messages", b"{},"),
            ("prompt", b'"",'),
            ("stop", b'"",'),
        )
    ),
    *(
        Attack(
            f"900 kB of {filling!r} in {name}",
            "M6",
            full_of(name, filling, 900_000),
        )
        for name, filling in (
            ("unknown", b"{},"),
            ("metadata", b"[],"),
            ("prompt", b"1,"),
            ("tools", b"{},"),
            ("logprobs", b"{},"),
            ("stop_token_ids", b"1,"),
            ("bad_words", b'"a",'),
        )
    ),
    Attack(
        "eight times 900 kB of b'1,' in prompt, at once",
        "M6",
        full_of("prompt", b"1,", 900_000),
        times=8,
    ),
    Attack("4,096 empty messages", "M6", lambda: many_messages(4096), path=CHAT),
    Attack(
        "30,000 empty messages", "M6", lambda: many_messages(30_000), path=CHAT, statuses=REFUSED
    ),
    Attack(
        "a chat of 30,000 tools",
        "M6",
        lambda: chat(
            tools=[{"type": "function", "function": {"name": "f"}}] * 20_000,
            tool_choice="required",
        ),
        path=CHAT,
    ),
    Attack(
        "an input of 30,000 items",
        "M6",
        lambda: {"input": [{"type": "message", "role": "user", "content": ""}] * 30_000},
        path="/v1/responses",
        statuses=REFUSED,
    ),
    Attack(
        "a message of 30,000 blocks",
        "M6",
        lambda: {
            "max_tokens": 1,
            "messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 30_000}],
        },
        path="/v1/messages",
    ),
    Attack(
        "brackets 50,000 deep",
        "M6",
        lambda: b'{"prompt": [1], "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        statuses=REFUSED,
    ),
    # --- answers to wrong fields ---------------------------------------------------------------
    Attack(
        "a type of tool_choice that is a list",
        "L7",
        lambda: {**chat(), "tool_choice": {"type": []}, "max_tokens": 1},
        path="/v1/messages",
        statuses=REFUSED,
    ),
    Attack(
        "a megabyte where a type should stand",
        "L14",
        lambda: {**chat(), "tool_choice": {"type": "x" * MEGABYTE}, "max_tokens": 1},
        path="/v1/messages",
        statuses=REFUSED,
        most_bytes=4096,
    ),
    Attack(
        "a megabyte where a part's type should stand",
        "L14",
        lambda: {"input": [{"role": "user", "content": [{"type": "x" * MEGABYTE}]}]},
        path="/v1/responses",
        statuses=REFUSED,
        most_bytes=4096,
    ),
    Attack(
        "a megabyte as a stop token",
        "L14",
        lambda: completion(stop_token_ids=["x" * MEGABYTE]),
        statuses=REFUSED,
        most_bytes=4096,
    ),
    # --- HTTP itself ---------------------------------------------------------------------------
    Attack(
        "a length and chunks",
        "L4",
        raw=lambda: request_bytes(
            "POST /v1/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
            f"Content-Length: {len(SMUGGLED)}\nTransfer-Encoding: chunked\n\n",
            SMUGGLED,
        ),
        statuses=frozenset({400}),
    ),
    Attack(
        "bare line feeds",
        "L4",
        raw=lambda: b"GET /live HTTP/1.1\nHost: localhost\n\n",
        statuses=frozenset({400}),
    ),
    Attack(
        "a folded header",
        "L4",
        raw=lambda: b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n  c\r\n\r\n",
        statuses=frozenset({400}),
    ),
    Attack("a head of 70 kB", "L10", raw=lambda: head_of(70_000), statuses=frozenset({400, 431})),
    Attack(
        "a head of 70 kB without an end",
        "L10",
        raw=lambda: head_of(70_000, complete=False),
        statuses=frozenset({400, 431}),
    ),
    Attack(
        "a path of 70 kB",
        "L10",
        path="/v1/" + "a" * 70_000,
        method="GET",
        statuses=frozenset({400, 414, 431}),
    ),
    Attack(
        "a trace for another web page",
        "L5",
        path="/debug/trace?seconds=0.01",
        method="GET",
        headers={"Sec-Fetch-Site": "cross-site"},
        statuses=frozenset({401, 403}),
    ),
    Attack(
        "a hundred wrong keys",
        "L11",
        lambda: completion(),
        headers={"Authorization": "Bearer wrong"},
        times=100,
        statuses=frozenset({401, 429}),
    ),
)


def spelled(attack: Attack, key: str | None) -> bytes:
    """All that the attacker writes to one connection."""
    if attack.raw is not None:
        return attack.raw()
    made = attack.body() if attack.body is not None else b""
    body = made if isinstance(made, bytes) else json.dumps(made).encode()
    headers = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
    if body:
        headers |= JSON_TYPE
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    lines = [f"{name}: {value}" for name, value in (headers | dict(attack.headers)).items()]
    return "\r\n".join([f"{attack.method} {attack.path} HTTP/1.1", *lines, "", ""]).encode() + body
