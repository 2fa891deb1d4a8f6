"""The addresses for whoever runs the server: probes, metrics, and the inside."""

import asyncio
import platform
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from megainfer import __version__
from megainfer.errors import RequestError
from megainfer.instruments.trace_events import (
    MAX_TRACE_SECONDS,
    MIN_TRACE_SECONDS,
    trace_document,
)
from megainfer.messages.message import Role
from server.http.access import PROBES
from server.http.connection import CLIENT_CLOSED_REQUEST, ClientGone, while_connected
from server.http.errors import SERVER_ERROR, ErrorReport
from server.http.json_route import JsonRoute
from server.operate.broadcasts import (
    BroadcastRequest,
    GroupRequest,
    LeaveRequest,
    TransferRequest,
    UpdateRequest,
)
from server.operate.changes import NodeRequest, RestartRequest, ScaleRequest
from server.operate.docs_page import docs_page
from server.operate.health import HealthReport
from server.operate.instance import Instance
from server.operate.node_report import node_report
from server.operate.rollouts import (
    ContinueRequest,
    DiskRequest,
    PauseRequest,
    Refusals,
    refusal,
    refusing,
)

PACKAGES = ("fastapi", "uvicorn", "pydantic", "torch", "tokenizers", "pyzmq", "prometheus-client")


class Operations:
    """The handlers, over what is known of the instance."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def live(self) -> Response:
        """200 as long as this process answers at all."""
        return JSONResponse({"status": "ok"})

    async def health(self) -> Response:
        """200 while requests are taken and computed, degraded or not, else 503 and why."""
        report = self._instance.health.report()
        return _health(report)

    async def ready(self) -> Response:
        """200 when a token went through the nodes lately; without traffic one is asked for."""
        if self._instance.rollouts.paused:
            return _state("generation is paused, until somebody asks for /resume")
        return _state(await self._instance.readiness.problem())

    async def metrics(self, request: Request) -> Response:
        """Everything that is counted, for Prometheus."""
        body, kind = await self._instance.exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": kind})

    async def load(self) -> Response:
        """How many requests for work are being answered."""
        return JSONResponse({"server_load": self._instance.occupancy.in_flight})

    async def version(self) -> Response:
        """MegaInfer's version."""
        return JSONResponse({"version": __version__})

    async def server_info(self) -> Response:
        """Configuration, plan, the start's stages, nodes and versions."""
        versions = {name: version(name) for name in PACKAGES}
        return JSONResponse(
            {
                "version": __version__,
                "api_server": self._instance.exposition.number,
                **self._instance.info,
                "startup_seconds": self._instance.counted.startup,
                "nodes": self._nodes(),
                "versions": {"python": platform.python_version(), **versions},
            }
        )

    async def nodes(self) -> Response:
        """Every node's latest counters, as the node itself counts."""
        board = self._instance.board
        nodes = [*board.of_role(Role.ATTENTION), *board.of_role(Role.EXPERT)]
        body = msgspec.json.encode({node.name: node.counters for node in nodes})
        return Response(body, media_type="application/json")

    async def admin_nodes(self) -> Response:
        """The membership, and of every node whether it serves and how often it was restarted."""
        engine = self._instance.counted.engine
        return JSONResponse(node_report(engine, self._instance.board))

    async def scale(self, body: ScaleRequest) -> Response:
        """So many attention and expert nodes from now on; answers when they serve."""
        return JSONResponse(await self._instance.changes.scale(body))

    async def drain(self, body: NodeRequest) -> Response:
        """Do without a node: its requests and experts go to others, then it ends."""
        return JSONResponse(await self._instance.changes.drain(body))

    async def restart(self, body: RestartRequest) -> Response:
        """Start a node anew, or all of them, one after the other."""
        return JSONResponse(await self._instance.changes.restart(body))

    async def update_weights_from_disk(self, body: DiskRequest) -> Response:
        """Other weights for all nodes, from a folder or file (SGLang's address)."""
        return await _updated(self._instance.rollouts.update_from_disk(body))

    async def update_weights_from_distributed(self, body: BroadcastRequest) -> Response:
        """Other weights for all nodes, as they are broadcast (SGLang's address)."""
        return await _updated(self._instance.rollouts.update_from_group(body))

    async def init_weights_update_group(self, body: GroupRequest) -> Response:
        """Join the group in which weights will be broadcast (SGLang's address)."""
        with refusing():
            await self._instance.rollouts.join(body.group())
        return JSONResponse({"success": True, "message": "joined"})

    async def destroy_weights_update_group(self, body: LeaveRequest) -> Response:
        """Leave that group (SGLang's address)."""
        await self._instance.rollouts.leave()
        return JSONResponse({"success": True, "message": "left"})

    async def init_weight_transfer_engine(self, body: TransferRequest) -> Response:
        """Join the group in which weights will be broadcast (vLLM's address)."""
        with refusing():
            await self._instance.rollouts.join(body.group())
        return JSONResponse({"message": "Weight transfer initialized"})

    async def update_weights(self, body: UpdateRequest) -> Response:
        """Other weights for all nodes, as they are broadcast (vLLM's address)."""
        with refusing():
            version = await self._instance.rollouts.update_from_group(body.broadcast())
        return JSONResponse({"message": "Weights updated", "weight_version": version})

    async def world_size(self) -> Response:
        """Members of such a group that the instance is (vLLM's address)."""
        return JSONResponse({"world_size": 1})

    async def pause_generation(self, body: PauseRequest) -> Response:
        """Let generation stand still: abort, retract or in_place (SGLang's address)."""
        await self._instance.rollouts.pause(body.mode)
        return JSONResponse({"message": "generation is paused", "status": "ok"})

    async def continue_generation(self, body: ContinueRequest) -> Response:
        """Go on (SGLang's address)."""
        await self._instance.rollouts.resume()
        return JSONResponse({"message": "generation goes on", "status": "ok"})

    async def pause(self, mode: str = "abort", clear_cache: bool = True) -> Response:
        """Let generation stand still: abort, wait or keep (vLLM's address)."""
        await self._instance.rollouts.pause(mode, clear_cache)
        return JSONResponse({"status": "paused"})

    async def resume(self) -> Response:
        """Go on (vLLM's address)."""
        await self._instance.rollouts.resume()
        return JSONResponse({"status": "resumed"})

    async def is_paused(self) -> Response:
        """Whether generation stands still (vLLM's address)."""
        return JSONResponse({"is_paused": self._instance.rollouts.paused})

    async def weight_version(self) -> Response:
        """The name of the weights that all nodes compute with (SGLang's address)."""
        return JSONResponse({"weight_version": self._instance.rollouts.version})

    async def trace(self, request: Request, seconds: float = 2.0) -> Response:
        """What every node did in the next `seconds` (0.01 to 60), for Perfetto."""
        if not MIN_TRACE_SECONDS <= seconds <= MAX_TRACE_SECONDS:
            raise RequestError(
                f"seconds must be from {MIN_TRACE_SECONDS:g} to {MAX_TRACE_SECONDS:g}, not "
                f"{seconds}",
                "seconds",
            )
        recording = self._instance.tracer.record(seconds)
        try:
            spans = await while_connected(request.receive, recording)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        model = self._instance.counted.model
        # There may be 100,000 of each node: streams go on meanwhile.
        body = await asyncio.to_thread(
            lambda: msgspec.json.encode(trace_document({model: spans})),
        )
        return Response(body, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        """This list."""
        page = HTMLResponse(docs_page(await _document(request)))
        page.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        return page

    async def document(self, request: Request) -> Response:
        """The same for programs."""
        return JSONResponse(await _document(request))

    def _nodes(self) -> list[dict[str, Any]]:
        board = self._instance.board
        return [
            {
                "name": node.name,
                "role": str(node.role),
                "up": board.is_up(node),
                "last_heard_seconds": round(board.silence(node), 3),
                "idle_ratio": round(node.idle_share(), 4),
            }
            for role in (Role.ATTENTION, Role.EXPERT)
            for node in board.of_role(role)
        ]


def operations_router(operations: Operations) -> APIRouter:
    """Every address, bound to its handler."""
    router = APIRouter(route_class=JsonRoute, default_response_class=JSONResponse)
    for path, change in (
        ("/admin/scale", operations.scale),
        ("/admin/drain", operations.drain),
        ("/admin/restart", operations.restart),
        ("/update_weights_from_disk", operations.update_weights_from_disk),
        ("/init_weights_update_group", operations.init_weights_update_group),
        ("/update_weights_from_distributed", operations.update_weights_from_distributed),
        ("/destroy_weights_update_group", operations.destroy_weights_update_group),
        ("/init_weight_transfer_engine", operations.init_weight_transfer_engine),
        ("/update_weights", operations.update_weights),
        ("/pause_generation", operations.pause_generation),
        ("/continue_generation", operations.continue_generation),
        ("/pause", operations.pause),
        ("/resume", operations.resume),
    ):
        router.add_api_route(path, change, methods=["POST"], response_model=None)
    for path, handler in (
        ("/live", operations.live),
        ("/health", operations.health),
        ("/ping", operations.health),
        ("/ready", operations.ready),
        ("/metrics", operations.metrics),
        ("/load", operations.load),
        ("/version", operations.version),
        ("/server_info", operations.server_info),
        ("/admin/nodes", operations.admin_nodes),
        ("/is_paused", operations.is_paused),
        ("/get_world_size", operations.world_size),
        ("/weight_version", operations.weight_version),
        ("/get_weight_version", operations.weight_version),
        ("/debug/nodes", operations.nodes),
        ("/debug/trace", operations.trace),
        ("/docs", operations.docs),
    ):
        router.add_api_route(path, handler, methods=["GET"], response_model=None)
        if path in PROBES:
            router.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)
    router.add_api_route(
        "/openapi.json", operations.document, methods=["GET"], include_in_schema=False
    )
    return router


async def _updated(updating: Awaitable[str]) -> Response:
    """As SGLang tells it."""
    try:
        version = await updating
    except Refusals as error:
        return JSONResponse(refusal(error), 400)
    message = f"weights {version!r} are in force"
    return JSONResponse({"success": True, "message": message, "num_paused_requests": 0})


async def _document(request: Request) -> dict[str, Any]:
    """Its first time takes 100 ms."""
    document: dict[str, Any] = await asyncio.to_thread(request.app.openapi)
    return document


def _health(report: HealthReport) -> Response:
    """Of what is wrong, error and all: load balancers look at the status, people at the rest."""
    about: dict[str, Any] = {"status": report.state}
    if report.reason is not None:
        about["reason"] = report.reason
    if report.seconds is not None:
        about["seconds"] = round(report.seconds, 3)
    if report.takes_requests:
        return JSONResponse(about)
    response = _state(report.reason)
    error = msgspec.json.decode(response.body)
    return JSONResponse({**about, **error}, response.status_code, {"Retry-After": "1"})


def _state(problem: str | None) -> Response:
    if problem is None:
        return JSONResponse({"status": "ok"})
    return ErrorReport(503, problem, SERVER_ERROR, code="engine_unavailable").response()
