"""Hundreds of clients at once that all want something else, of one real server.

What a request gives is known beforehand: each of the deterministic ones (greedy, or with a seed)
has been answered once on an idle server.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CONCURRENCY = 64
REQUEST_SECONDS = 120.0
CHAT = [{"role": "user", "content": "Hello world"}]

BAD: list[dict[str, Any]] = [
    {"prompt": []},
    {"prompt": [10**9]},
    {"prompt": [-1]},
    {"prompt": [[1], "x"]},
    {"prompt": [1], "max_tokens": 0},
    {"prompt": [1], "max_tokens": 2**70},
    {"prompt": [1] * 5000},
    {"prompt": [1], "temperature": 3},
    {"prompt": [1], "temperature": "warm"},
    {"prompt": [1], "top_p": -0.5},
    {"prompt": [1], "top_k": -2},
    {"prompt": [1], "n": 10**6},
    {"prompt": [1], "stop": ["", "x"]},
    {"prompt": [1], "logit_bias": {"999999999": 1}},
    {"prompt": [1], "logprobs": 10**6},
    {"prompt": [1], "seed": 2**64},
    {"prompt": [1], "model": "nobody's"},
    {"prompt": [1], "stream_options": {"include_usage": True}},
]

Body = dict[str, Any]
Tokens = list[list[int]]  # of each choice


def wishes(rng: random.Random, vocabulary: int, count: int) -> list[Body]:
    """Completions whose answer depends on nothing but themselves."""
    shared = [rng.randrange(vocabulary) for _ in range(40)]
    return [_wish(rng, vocabulary, shared, greedy=i % 2 == 0) for i in range(count)]


def _wish(rng: random.Random, vocabulary: int, shared: list[int], greedy: bool) -> Body:
    start = rng.choice([0, 8, 24, 40])  # so that some begin alike
    prompt = shared[:start] + [rng.randrange(vocabulary) for _ in range(rng.randint(1, 30))]
    body: Body = {
        "prompt": prompt,
        "max_tokens": rng.randint(1, 24),
        "ignore_eos": True,
        "temperature": 0.0,
        "return_token_ids": True,
    }
    if greedy:
        return body
    choices: dict[str, Sequence[Any]] = {
        "top_p": [0.5, 0.9, 1.0],
        "top_k": [0, 1, 5, 40],
        "min_p": [0.0, 0.05, 0.2],
        "presence_penalty": [-0.5, 0.0, 1.5],
        "frequency_penalty": [0.0, 0.7],
        "repetition_penalty": [1.0, 1.3],
        "n": [1, 1, 2, 3],
        "min_tokens": [0, 1],
        "logit_bias": [{}, {str(rng.randrange(vocabulary)): rng.choice([-100, -3, 4])}],
    }
    picked = {name: rng.choice(values) for name, values in choices.items()}
    return {
        **body,
        **picked,
        "temperature": rng.choice([0.3, 1.0, 1.7]),
        "seed": rng.randrange(2**31),
    }


@dataclass
class Tally:
    """What happened, by kind, and what should not have."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what[:2000])


class Crowd:
    """Clients of one server. answers: of `wishes`, in order, when nobody else asked."""

    def __init__(self, url: str, wishes: Sequence[Body], seed: int) -> None:
        self._url = url
        self._wishes = wishes
        self._rng = random.Random(seed)
        self.answers: list[Tokens] = []
        self.tally = Tally()

    async def learn(self) -> None:
        """Ask for everything once, one after the other."""
        async with self._client() as client:
            for body in self._wishes:
                response = await client.post("/v1/completions", json=body)
                assert response.status_code == 200, response.text
                self.answers.append(_tokens(response.json()))

    async def rush(self, count: int) -> None:
        """So many requests, `CONCURRENCY` at a time."""
        places = asyncio.Semaphore(CONCURRENCY)

        async def one(act: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
            async with places:
                await act(client)

        async with self._client() as client:
            await asyncio.gather(*(one(self._any_act()) for _ in range(count)))

    async def hang_up(self, count: int) -> None:
        """So many streams that are left in the middle, and nothing else."""
        places = asyncio.Semaphore(CONCURRENCY)

        async def one() -> None:
            async with places:
                await self._hang_up(client)

        async with self._client() as client:
            await asyncio.gather(*(one() for _ in range(count)))

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        return httpx.AsyncClient(
            base_url=self._url, limits=limits, timeout=REQUEST_SECONDS, trust_env=False
        )

    def _any_act(self) -> Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]:
        acts = [self._whole, self._stream, self._hang_up, self._bad, self._undetermined]
        return self._rng.choices(acts, weights=[4, 4, 3, 2, 2])[0]

    def _pick(self) -> tuple[Body, Tokens]:
        at = self._rng.randrange(len(self._wishes))
        return self._wishes[at], self.answers[at]

    async def _whole(self, client: httpx.AsyncClient) -> None:
        body, expected = self._pick()
        response = await client.post("/v1/completions", json=body)
        right = response.status_code == 200 and _tokens(response.json()) == expected
        self.tally.check(right, f"{body} gave {response.text}, not {expected}")
        self.tally.done["whole"] += 1

    async def _stream(self, client: httpx.AsyncClient) -> None:
        body, expected = self._pick()
        got: Tokens = [[] for _ in expected]
        async with client.stream(
            "POST", "/v1/completions", json={**body, "stream": True}
        ) as answer:
            async for event in _events(answer):
                for choice in event.get("choices", []):
                    got[choice["index"]] += choice["token_ids"] or []
                self.tally.check("error" not in event, f"{body} gave {event}")
        self.tally.check(got == expected, f"{body} streamed {got}, not {expected}")
        self.tally.done["stream"] += 1

    async def _hang_up(self, client: httpx.AsyncClient) -> None:
        """After some events, or even before the first."""
        body, _ = self._pick()
        left = self._rng.randint(0, 6)
        endless = {**body, "max_tokens": 180, "stream": True}
        async with client.stream("POST", "/v1/completions", json=endless) as answer:
            self.tally.check(answer.status_code == 200, f"{body} gave {answer.status_code}")
            async for _event in _events(answer):
                left -= 1
                if left < 0:
                    break
        self.tally.done["hung up"] += 1

    async def _bad(self, client: httpx.AsyncClient) -> None:
        body = self._rng.choice(BAD)
        response = await client.post("/v1/completions", json=body)
        refused = 400 <= response.status_code < 500 and response.json()["error"]["message"]
        self.tally.check(bool(refused), f"{body} gave {response.status_code} {response.text}")
        self.tally.done["bad"] += 1

    async def _undetermined(self, client: httpx.AsyncClient) -> None:
        """Drawn without a seed: whatever comes is right, if it comes."""
        body, expected = self._pick()
        free = {**body, "temperature": 1.5, "seed": None, "logprobs": self._rng.randint(0, 5)}
        response = await client.post("/v1/completions", json=free)
        lengths = [len(tokens) for tokens in _tokens(response.json())]
        right = response.status_code == 200 and lengths == [len(tokens) for tokens in expected]
        self.tally.check(right, f"{free} gave {response.text}")
        self.tally.done["drawn"] += 1


async def _events(answer: httpx.Response) -> Any:
    async for line in answer.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _tokens(answer: dict[str, Any]) -> Tokens:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    return [choice["token_ids"] for choice in choices]
