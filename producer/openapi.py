"""What /openapi.json says beyond what FastAPI finds by itself: error answers, and the body of a submit.

The body is decoded by `body.py` and checked once by `schemas.py`, so FastAPI never sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from producer.answers import ProblemOut
from producer.auth import OPEN
from producer.batch import MOST_JOBS
from producer.schemas import json_schema_of_requests

Shape = type[BaseModel] | UnionType | str | None
HEADERS = {
    "x-request-id": {
        "description": "Name of this request in the server's log.",
        "schema": {"type": "string"},
    },
}
RETRY_AFTER = {"retry-after": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}}
ERRORS = {
    400: "The body is not JSON, or a header is malformed; `field` names it.",
    401: "The API key is missing or not valid; only on a server that has keys.",
    403: "The API key is not for this, or a page of another site sent a form; `field` names what was asked for.",
    404: "There is no such job or model; for a model, `known` lists those that exist.",
    409: "The job's state does not allow this; `state` is what it is.",
    413: "The body is larger than this server accepts.",
    415: "The body is declared neither as application/json nor as multipart/form-data, or is compressed.",
    422: "A field has a value that is not allowed: `errors` names each with its value and what is allowed.",
    429: "The queue holds as many waiting jobs as it may; nothing was accepted.",
    503: "Redis does not answer or refuses to write; send it again, with an Idempotency-Key to be safe.",
}


def answers(good: dict[int, tuple[Shape, str]], *errors: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route."""
    out: dict[int | str, dict[str, Any]] = {status: _good(*shape) for status, shape in good.items()}
    return out | {status: _bad(status) for status in errors}


def _good(shape: Shape, description: str) -> dict[str, Any]:
    if shape is None:
        return {"description": description}
    if isinstance(shape, str):
        return {"description": description, "content": {shape: {"schema": {"type": "string"}}}}
    return {"description": description, "model": shape, "headers": HEADERS}


def _bad(status: int) -> dict[str, Any]:
    headers = HEADERS | RETRY_AFTER if status in (429, 503) else HEADERS
    schema = {"$ref": "#/components/schemas/ProblemOut"}
    content = {"application/problem+json": {"schema": schema}}
    return {"description": ERRORS[status], "headers": headers, "content": content}


def body_of(shape: type[BaseModel], required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its own body."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _header(name: str, description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
        "example": example,
    }


SUBMIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/JobRequest"},
                        {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/JobRequest"},
                            "minItems": 1,
                            "maxItems": MOST_JOBS,
                        },
                    ]
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "job": {"$ref": "#/components/schemas/TranscriptionRequest"},
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "The recording, in place of `input.audio`; at most max_audio_bytes.",
                        },
                    },
                    "required": ["job", "file"],
                    "additionalProperties": False,
                },
                "encoding": {"job": {"contentType": "application/json"}},
            },
        },
    },
    "parameters": [
        _header("Prefer", "RFC 7240: `wait=N` and `respond-async`.", {"type": "string"}, "wait=30"),
        _header(
            "Idempotency-Key",
            'Makes sending again safe: 1 to 255 printable ASCII characters, as a "quoted" string or bare.',
            {"type": "string"},
            '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
        ),
    ],
}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The function that FastAPI asks for the document; it is made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return document


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    request = json_schema_of_requests()
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas |= request.pop("$defs") | {"JobRequest": request}
    problem = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"ProblemOut": problem}
    _say_who_may(made)
    return made


def _say_who_may(made: dict[str, Any]) -> None:
    made["components"]["securitySchemes"] = {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, `jv_…`; `x-api-key` takes it too. A server without keys asks for none.",
        }
    }
    for path, item in made["paths"].items():
        if path not in OPEN:
            for operation in item.values():
                operation["security"] = [{"apiKey": []}]
                operation["responses"] |= {str(status): _bad(status) for status in (401, 403)}
