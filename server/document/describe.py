"""The document itself: FastAPI knows the types of what is taken, `ANSWERS` what is answered."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from server.document.answers import ANSWERS, WHEN, Answers
from server.document.requests import describe_requests

Json = dict[str, Any]
MODE: Literal["validation"] = "validation"
SCHEMAS = "#/components/schemas/"
OF_FASTAPI = ("HTTPValidationError", "ValidationError")  # errors of a shape that nothing here has


def describe(app: FastAPI, vocab_size: int) -> None:
    """Have the application serve a document that tells of every answer, good or not.

    vocab_size: token ids are below it.
    """

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, vocab_size)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _document(app: FastAPI, vocab_size: int) -> Json:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    references, definitions = _schemas()
    for path in document["paths"].keys() & ANSWERS.keys():
        for operation in document["paths"][path].values():
            operation["responses"] = _responses(ANSWERS[path], references)
    components = document["components"]
    taken = components["schemas"]
    describe_requests(taken, vocab_size)
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
        good["text/event-stream"] = {"schema": _event(references[repr(answers.chunk)])}
    error = {"application/json": {"schema": references[repr(answers.error)]}}
    wrong = {
        str(status): {"description": WHEN[status], "content": error} for status in answers.errors
    }
    return {"200": {"description": "the answer", "content": good}, **wrong}


def _event(chunk: Json) -> Json:
    """Of each event in a stream, as those who check streams expect it."""
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    data = {"anyOf": [{"const": "[DONE]"}, told]}
    return {
        "type": "object",
        "description": "each of the server-sent events; chats and completions end with [DONE]",
        "properties": {"data": data, "event": {"type": "string"}},
        "required": ["data"],
    }
