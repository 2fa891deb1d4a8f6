"""The document itself: FastAPI knows what is taken, `ANSWERS` what is answered."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from server.document.answers import ANSWERS, WHEN, Answers

Json = dict[str, Any]
MODE: Literal["validation"] = "validation"
SCHEMAS = "#/components/schemas/"
OF_FASTAPI = ("HTTPValidationError", "ValidationError")  # errors of a shape that nothing here has


def describe(app: FastAPI) -> None:
    """Have the application serve a document that tells of every answer, good or not."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _document(app: FastAPI) -> Json:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    references, definitions = _schemas()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(ANSWERS[path], references)
    components = document.setdefault("components", {})
    taken = components.get("schemas", {})
    components["schemas"] = {
        **{name: schema for name, schema in taken.items() if name not in OF_FASTAPI},
        **definitions,
    }
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # a key only where the server was started with one
    return document


def _schemas() -> tuple[dict[Any, Json], Json]:
    """Type -> its schema, and the definitions to which those refer."""
    kinds = [
        kind
        for answers in ANSWERS.values()
        for kind in (answers.answer, answers.chunk, answers.error)
        if kind is not None
    ]
    unique = [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]
    adapters = [(at, MODE, TypeAdapter(kind)) for at, kind in enumerate(unique)]
    schemas, definitions = TypeAdapter.json_schemas(adapters, ref_template=SCHEMAS + "{model}")
    references = {repr(kind): schemas[at, MODE] for at, kind in enumerate(unique)}
    return references, definitions.get("$defs", {})


def _responses(answers: Answers, references: dict[Any, Json]) -> Json:
    good: Json = {answers.media_type: {"schema": {"type": "string"}}}
    if answers.answer is not None:
        good = {"application/json": {"schema": references[repr(answers.answer)]}}
    if answers.chunk is not None:
        about = "server-sent events; the data of each:"
        chunk = references[repr(answers.chunk)]
        stream = {"type": "string", "description": about, "contentSchema": chunk}
        good["text/event-stream"] = {"schema": stream}
    error = {"application/json": {"schema": references[repr(answers.error)]}}
    wrong = {
        str(status): {"description": WHEN[status], "content": error} for status in answers.errors
    }
    return {"200": {"description": "the answer", "content": good}, **wrong}
