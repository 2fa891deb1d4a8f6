"""Changes of the instance's nodes that an administrator asks for, and what came of them."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from pydantic import Field

from megainfer.errors import Overloaded, RequestError
from megainfer.messages.from_child import Release, Renew, Resize
from megainfer.messages.message import Role
from megainfer.messages.to_child import Resized
from server.openai.protocol import Body

CHANGE_SECONDS = 3600.0
"""Weights may have to be read from a slow disk, for node after node."""

MOST_NODES = 2**16
"""That may be asked for; how many there may be is the instance's own affair."""

Wish = Resize | Release | Renew


class ScaleRequest(Body):
    """So many nodes; what is left out stays as it is."""

    attn: int | None = Field(default=None, ge=1, le=MOST_NODES)
    ffn: int | None = Field(default=None, ge=1, le=MOST_NODES)


class NodeRequest(Body):
    """node: a name as `/admin/nodes` has it, such as `expert node 1`."""

    node: str


class RestartRequest(Body):
    """node: as in NodeRequest; all, one after the other, where it is left out."""

    node: str | None = None


class Changes:
    """ask: tells the supervisor. first_ticket: tickets of several API servers differ."""

    def __init__(self, ask: Callable[[Wish], object], first_ticket: int = 0) -> None:
        self._ask = ask
        self._numbers = itertools.count(first_ticket)
        self._waiting: dict[int, asyncio.Future[Resized]] = {}

    def hear(self, resized: Resized) -> None:
        """The supervisor's answer."""
        answer = self._waiting.get(resized.ticket)
        if answer is not None and not answer.done():
            answer.set_result(resized)

    async def scale(self, body: ScaleRequest) -> dict[str, Any]:
        """Serve with so many nodes; returns when it does. Raises RequestError."""
        if body.attn is None and body.ffn is None:
            raise RequestError("attn or ffn is needed: how many nodes of that role", "attn")
        return await self._made(Resize(next(self._numbers), body.attn, body.ffn))

    async def drain(self, body: NodeRequest) -> dict[str, Any]:
        """Serve without this node. Raises RequestError."""
        return await self._made(Release(next(self._numbers), *parse_node(body.node)))

    async def restart(self, body: RestartRequest) -> dict[str, Any]:
        """Start a node anew, or each in turn. Raises RequestError."""
        name = (None, None) if body.node is None else parse_node(body.node)
        return await self._made(Renew(next(self._numbers), *name))

    async def _made(self, wish: Wish) -> dict[str, Any]:
        answer: asyncio.Future[Resized] = asyncio.get_running_loop().create_future()
        self._waiting[wish.ticket] = answer
        try:
            if self._ask(wish) is False:
                raise Overloaded("the supervisor doesn't listen just now; try again in a moment")
            async with asyncio.timeout(CHANGE_SECONDS):
                done = await answer
        except TimeoutError:
            raise Overloaded(f"the change was not over after {CHANGE_SECONDS:g} s") from None
        finally:
            del self._waiting[wish.ticket]
        if done.error is not None:
            raise RequestError(done.error)
        return {
            "attention": done.attention,
            "experts": done.experts,
            "seconds": round(done.seconds, 3),
        }


def parse_node(name: str) -> tuple[Role, int]:
    """
    >>> parse_node("expert node 1")
    (<Role.EXPERT: 'expert'>, 1)

    Also `expert-1`. Raises RequestError for anything else.
    """
    role, _, number = name.replace(" node ", "-").partition("-")
    if role in (Role.ATTENTION, Role.EXPERT) and number.isdecimal() and len(number) < 7:
        return Role(role), int(number)
    raise RequestError(
        f"no node is called {name!r:.100}; a name is `attention node 0` or `expert node 1`", "node"
    )
