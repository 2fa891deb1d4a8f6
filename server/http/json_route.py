"""Addresses whose requests are JSON: read within limits, checked, and passed to their handler."""

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, get_type_hints

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.http.body import JsonRequest
from server.http.errors import answer_to, is_foreseen
from server.http.held_time import told_of_steps

Handle = Callable[[Any], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """A route that reads its body through JsonRequest. Where its handler takes nothing but that,
    and perhaps the request, it is called straight away: FastAPI's way of finding out what else
    there may be takes longer than to read most bodies."""

    def get_route_handler(self) -> Handle:
        handle = _straight(self.endpoint) or super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            own = JsonRequest(request.scope, request.receive)
            try:
                return await told_of_steps(handle(own), own.held_loop)
            finally:
                own.forget()

        return handle_json


def _straight(endpoint: Callable[..., Any]) -> Handle | None:
    """A handler that reads and checks the body itself; None where FastAPI has to."""
    hints = get_type_hints(endpoint)
    kinds: dict[str, Any] = {
        name: hints.get(name) for name in inspect.signature(endpoint).parameters
    }
    models = [name for name, kind in kinds.items() if _is_model(kind)]
    requests = [name for name, kind in kinds.items() if kind is Request]
    if len(models) != 1 or len(models) + len(requests) != len(kinds):
        return None
    read = partial(_checked, kinds[models[0]])

    async def handle(request: JsonRequest) -> Response:
        given = dict.fromkeys(requests, request)
        response: Response = await endpoint(**{models[0]: read(await request.json())}, **given)
        return response

    return handle


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _checked(model: type[BaseModel], value: Any) -> BaseModel:
    """Raises RequestValidationError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in wrong]
        ) from None


class Shortcuts:
    """ASGI: what is asked for most goes straight to its handler. The application would get there
    by trying addresses one after another, behind a dozen layers for what no handler here has,
    which is a tenth of a small request's cost. It answers all else."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._handlers = {
            (method, route.path): route.get_route_handler()
            for route in app.router.routes
            if isinstance(route, JsonRoute) and _straight(route.endpoint)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._handlers.get((scope["method"], scope["path"]))
        if handle is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        request = Request(scope, receive, send)
        try:
            response = await handle(request)
        except Exception as error:  # the handlers' boundary, as in Starlette's own layers
            response = await answer_to(request, error)
            await response(scope, receive, send)
            if not is_foreseen(error):
                raise
            return
        await response(scope, receive, send)
