"""The addresses of the page."""

from collections.abc import Awaitable, Callable
from time import monotonic

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from megainfer.messages import Role
from server.operate.instance import Instance
from server.page.assets import PAGE, load_asset
from server.page.live_state import live_state
from server.page.timeline import Timeline

FRESH_SECONDS = 0.5
"""For so long one answer serves all who look."""


class Page:
    """The handlers of what the live view asks for."""

    def __init__(self, instance: Instance) -> None:
        board = instance.board
        nodes = len(board.of_role(Role.ATTENTION)) + len(board.of_role(Role.EXPERT))
        self._instance = instance
        self._timeline = Timeline(instance.tracer, nodes)
        self._state, self._made_at = b"", float("-inf")

    async def state(self) -> Response:
        """What the live view shows, but for the timeline: totals since the start."""
        now = monotonic()
        if now - self._made_at >= FRESH_SECONDS:
            report = self._instance.health.report()
            self._state = msgspec.json.encode(live_state(self._instance.counted, report))
            self._made_at = now
        return Response(self._state, media_type="application/json")

    async def timeline(self) -> Response:
        """What each node did last, span by span; nodes keep spans while this is asked for."""
        return Response(await self._timeline.look(), media_type="application/json")


def page_router(page: Page) -> APIRouter:
    """Every address: the page's files, and what its live view asks for."""
    router = APIRouter()
    for path, name in PAGE.items():
        router.add_api_route(path, _file(name), methods=["GET", "HEAD"], include_in_schema=False)
    for path, handler in (("/page/state", page.state), ("/page/timeline", page.timeline)):
        router.add_api_route(path, handler, methods=["GET"], response_model=None)
    return router


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    asset = load_asset(name)

    async def answer(request: Request) -> Response:
        return asset.answer(request)

    return answer
