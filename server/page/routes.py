"""The addresses of the page."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from megainfer.messages.message import Role
from server.operate.instance import Instance
from server.page.assets import PAGE, has_already, load_asset
from server.page.live_state import live_state
from server.page.placement_view import PlacementView
from server.page.request_totals import all_totals, encode_totals, own_totals
from server.page.timeline import Timeline

FRESH_SECONDS = 0.5
"""For so long one answer serves all who look."""


TOTALS = "page"
"""What another API server is asked for."""


class Page:
    """The handlers of what the live view asks for."""

    def __init__(self, instance: Instance) -> None:
        board = instance.board
        nodes = len(board.of_role(Role.ATTENTION)) + len(board.of_role(Role.EXPERT))
        self._instance = instance
        self._siblings = instance.exposition.siblings
        self._siblings.answers[TOTALS] = lambda: encode_totals(own_totals(instance.counted))
        self._timeline = Timeline(
            instance.tracer, nodes, lambda: instance.counted.engine.attendance.epoch
        )
        self._placement = PlacementView()
        self._state, self._made_at = b"", float("-inf")
        self._making: asyncio.Task[None] | None = None

    async def state(self) -> Response:
        """What the live view shows, but for the timeline and the placement: totals since the start,
        of all API servers."""
        if self._making is None and monotonic() - self._made_at >= FRESH_SECONDS:
            self._making = asyncio.create_task(self._make(), name="page-state")
        if self._making is not None:
            await asyncio.shield(self._making)
        return Response(self._state, media_type="application/json")

    async def placement(self, request: Request) -> Response:
        """Which expert node holds which expert, of the epoch that the ETag names."""
        body = self._placement.show(self._instance.board.membership)
        headers = {"ETag": self._placement.etag, "Cache-Control": "no-cache"}
        if has_already(request, self._placement.etag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    async def timeline(self) -> Response:
        """What each node did last, span by span; nodes keep spans while this is asked for."""
        return Response(await self._timeline.look(), media_type="application/json")

    async def _make(self) -> None:
        counted = self._instance.counted
        try:
            others = await self._siblings.ask(TOTALS)
            totals = all_totals(own_totals(counted), others.values())
            report = self._instance.health.report()
            self._state = msgspec.json.encode(live_state(counted, report, totals))
            self._made_at = monotonic()
        finally:
            self._making = None


def page_router(page: Page) -> APIRouter:
    """Every address: the page's files, and what its live view asks for."""
    router = APIRouter()
    for path, name in PAGE.items():
        router.add_api_route(path, _file(name), methods=["GET", "HEAD"], include_in_schema=False)
    for path, handler in (
        ("/page/state", page.state),
        ("/page/placement", page.placement),
        ("/page/timeline", page.timeline),
    ):
        router.add_api_route(path, handler, methods=["GET"], response_model=None)
    return router


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    asset = load_asset(name)

    async def answer(request: Request) -> Response:
        return asset.answer(request)

    return answer
