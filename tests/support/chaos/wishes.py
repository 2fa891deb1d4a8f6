"""Requests of every kind that goes on after a recovery, and what came of each.

An answer is what a client sees of it: tokens and their log-probabilities by choice, or texts and
calls, never the ids and times that differ from run to run.
"""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any

import httpx

VOCABULARY = 400
QUESTION = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "maximum": 99, "minimum": 0},
        "words": {"type": "array", "items": {"enum": ["a", "bc"]}, "minItems": 6, "maxItems": 6},
    },
    "required": ["n", "words"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
REQUEST_SECONDS = 120.0
Body = dict[str, Any]
Answer = dict[str, list[Any]]
"""By choice and what is told of it, in order."""


@dataclass(frozen=True)
class Wish:
    """drawn: nobody knows the seed, so that only numbers of tokens can be compared."""

    kind: str
    path: str
    body: Body
    drawn: bool = False


class End(StrEnum):
    DONE = "done"
    ERROR = "error"  # one that says so
    CUT = "cut"  # the connection ended
    REFUSED = "refused"


@dataclass
class Outcome:
    """times: of each event, on the monotonic clock. admitted: the server has begun to answer."""

    wish: Wish
    end: End = End.CUT
    admitted: bool = False
    answer: Answer = field(default_factory=dict)
    text: str = ""
    times: list[float] = field(default_factory=list)


def wishes(seed: int, count: int, tokens: int) -> list[Wish]:
    """All kinds in turn. tokens: about how many each is to give."""
    rng = random.Random(f"wishes {seed}")
    return [KINDS[i % len(KINDS)](rng, tokens) for i in range(count)]


def _completion(rng: random.Random, tokens: int, **more: Any) -> Body:
    return {
        "prompt": [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "return_token_ids": True,
        "stream": True,
        **more,
    }


def _greedy(rng: random.Random, tokens: int) -> Wish:
    return Wish("greedy", "/v1/completions", _completion(rng, tokens))


def _seeded(rng: random.Random, tokens: int) -> Wish:
    drawn = {"temperature": 0.9, "top_p": 0.9, "seed": rng.randrange(2**31)}
    return Wish("seeded", "/v1/completions", _completion(rng, tokens, **drawn))


def _unseeded(rng: random.Random, tokens: int) -> Wish:
    return Wish("unseeded", "/v1/completions", _completion(rng, tokens, temperature=1.0), True)


def _penalised(rng: random.Random, tokens: int) -> Wish:
    more = {"frequency_penalty": 0.7, "presence_penalty": 0.5, "repetition_penalty": 1.2}
    more |= {"min_tokens": tokens // 2, "temperature": 0.7, "seed": rng.randrange(2**31)}
    return Wish("penalties", "/v1/completions", _completion(rng, tokens, **more))


def _scored(rng: random.Random, tokens: int) -> Wish:
    return Wish("log-probabilities", "/v1/completions", _completion(rng, tokens, logprobs=3))


def _several(rng: random.Random, tokens: int) -> Wish:
    more = {"n": 3, "temperature": 1.0, "seed": rng.randrange(2**31)}
    return Wish("n = 3", "/v1/completions", _completion(rng, tokens, **more))


def _whole(rng: random.Random, tokens: int) -> Wish:
    return Wish("not streamed", "/v1/completions", _completion(rng, tokens, stream=False))


def _regex(rng: random.Random, tokens: int) -> Wish:
    expression = {"regex": f"([a-d][0-9]){{{tokens // 2}}}"}
    more = {"structured_outputs": expression, "temperature": 1.0, "seed": rng.randrange(2**31)}
    return Wish("regex", "/v1/completions", _completion(rng, 4 * tokens, **more))


def _chat(rng: random.Random, tokens: int, **more: Any) -> Body:
    question = [{"role": "user", "content": f"Hi {rng.randrange(1000)}"}]
    drawn = {"temperature": 0.8, "seed": rng.randrange(2**31), "max_tokens": tokens}
    return {"messages": question, "stream": True, **drawn, **more}


def _schema(rng: random.Random, tokens: int) -> Wish:
    described = {"name": "it", "schema": SCHEMA, "strict": True}
    body = _chat(rng, 150, response_format={"type": "json_schema", "json_schema": described})
    return Wish("schema", "/v1/chat/completions", body)


def _calls(rng: random.Random, tokens: int) -> Wish:
    more = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    return Wish("calls", "/v1/chat/completions", _chat(rng, 150, **more))


def _chats(rng: random.Random, tokens: int) -> Wish:
    body = _chat(rng, tokens, ignore_eos=True, logprobs=True, top_logprobs=2)
    return Wish("chat", "/v1/chat/completions", body)


def _responses(rng: random.Random, tokens: int) -> Wish:
    body = {
        "input": f"Hi {rng.randrange(1000)}",
        "max_output_tokens": tokens,
        "temperature": 0.8,
        "seed": rng.randrange(2**31),
        "ignore_eos": True,
        "stream": True,
    }
    return Wish("responses", "/v1/responses", body)


KINDS: Sequence[Callable[[random.Random, int], Wish]] = (
    _greedy,
    _several,
    _schema,
    _responses,
    _unseeded,
    _seeded,
    _calls,
    _penalised,
    _regex,
    _scored,
    _chats,
    _whole,
)


# --- asking -----------------------------------------------------------------------------------


async def ask_all(url: str, outcomes: Sequence[Outcome], at_once: int) -> None:
    """Ask for every outcome's wish, and let it become what comes of that."""
    places = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=REQUEST_SECONDS, trust_env=False
    ) as client:

        async def one(outcome: Outcome) -> None:
            async with places:
                await ask(client, outcome)

        await asyncio.gather(*(one(outcome) for outcome in outcomes))


async def ask(client: httpx.AsyncClient, outcome: Outcome) -> None:
    try:
        if outcome.wish.body["stream"]:
            await _stream(client, outcome)
        else:
            await _ask_whole(client, outcome)
    except httpx.TimeoutException as error:
        outcome.end, outcome.text = End.CUT, f"no end within {REQUEST_SECONDS:g} s: {error!r}"
    except httpx.HTTPError as error:
        outcome.end, outcome.text = End.CUT, repr(error)


async def _ask_whole(client: httpx.AsyncClient, outcome: Outcome) -> None:
    wish = outcome.wish
    response = await client.post(wish.path, json=wish.body)
    outcome.times.append(monotonic())
    if response.status_code != 200:
        outcome.end, outcome.text = End.REFUSED, response.text
        return
    _take_choices(outcome, response.json()["choices"])
    outcome.end = End.DONE


async def _stream(client: httpx.AsyncClient, outcome: Outcome) -> None:
    wish = outcome.wish
    async with client.stream("POST", wish.path, json=wish.body) as response:
        if response.status_code != 200:
            outcome.end, outcome.text = End.REFUSED, (await response.aread()).decode()
            return
        outcome.admitted = True
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            outcome.times.append(monotonic())
            if line == "data: [DONE]":
                outcome.end = End.DONE
            else:
                _take(outcome, json.loads(line.removeprefix("data: ")))
            if outcome.end is not End.CUT:
                break  # whatever might come after it


def _take(outcome: Outcome, event: Any) -> None:
    if event.get("error"):
        outcome.end, outcome.text = End.ERROR, json.dumps(event["error"])
    elif outcome.wish.path == "/v1/responses":
        _take_response_event(outcome, event)
    else:
        _take_choices(outcome, event["choices"])


def _take_response_event(outcome: Outcome, event: Any) -> None:
    put = outcome.answer.setdefault
    put("numbers", []).append(event["sequence_number"])
    match event["type"]:
        case "response.output_text.delta":
            put("text", []).extend(event["delta"])
        case "response.completed" | "response.incomplete":
            whole = event["response"]["output"][-1]["content"][0]["text"]
            put("end", []).append([event["type"], whole])
            outcome.end = End.DONE
        case "response.failed" | "error":
            outcome.end, outcome.text = End.ERROR, json.dumps(event)


def _take_choices(outcome: Outcome, choices: Sequence[Any]) -> None:
    for choice in choices:
        index = choice["index"]

        def put(what: str, values: Any, index: int = index) -> None:
            if values:
                outcome.answer.setdefault(f"{index} {what}", []).extend(values)

        put("tokens", choice.get("token_ids"))
        put("text", choice.get("text"))
        said = choice.get("delta") or choice.get("message") or {}
        put("text", said.get("content"))
        for call in said.get("tool_calls") or []:
            put("name", call["function"].get("name"))
            put("arguments", call["function"].get("arguments"))
        put("logprobs", _logprobs(choice.get("logprobs")))
        if choice.get("finish_reason"):
            put("end", [choice["finish_reason"]])


def _logprobs(told: Any) -> list[Any]:
    if not told:
        return []
    if (content := told.get("content")) is not None:
        return [[entry["token"], entry["logprob"]] for entry in content]
    pairs = zip(told["tokens"], told["token_logprobs"], strict=True)
    return [list(pair) for pair in pairs]


# --- comparing --------------------------------------------------------------------------------

CLOSE = 1e-3
"""Of log-probabilities after experts have moved: sums are by node."""


def mistakes(outcome: Outcome, expected: Answer, moved: bool) -> list[str]:
    """How an answer, or what came of it, differs from the undisturbed one. moved: whether experts'
    tokens may have gone elsewhere, which changes the last bits of sums."""
    whole = outcome.end is End.DONE
    found = []
    for name in sorted(expected.keys() | outcome.answer.keys()):
        got, want = outcome.answer.get(name, []), expected.get(name, [])
        if name == "numbers":
            right = got == list(range(len(got)))
        elif outcome.wish.drawn:
            right = not name.endswith(("tokens", "end")) or _fits_in_number(got, want, whole)
        elif name.endswith("logprobs") and moved:
            right = len(got) == len(want) or not whole
            right = right and all(map(_is_close, got, want))
        else:
            right = got == (want if whole else want[: len(got)])
        if not right:
            found.append(f"{name} is {_short(got)}, not {_short(want)}")
    return found


def _fits_in_number(got: list[Any], want: list[Any], whole: bool) -> bool:
    return len(got) == len(want) if whole else len(got) <= len(want)


def _is_close(got: list[Any], want: list[Any]) -> bool:
    return bool(got[0] == want[0] and abs(got[1] - want[1]) < CLOSE)


def _short(values: list[Any]) -> str:
    if all(isinstance(value, str) and len(value) == 1 for value in values):
        return repr("".join(values))
    return repr(values)
