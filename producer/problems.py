"""Every error on its way out: RFC 9457 problem+json that names the field, says whether a retry can help, and
hides the inside.

Whatever a handler raises ends here; no other module builds an error answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from redis import exceptions as redis_errors
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from common.errors import (
    InvalidField,
    JarvisError,
    LimitReached,
    MalformedBody,
    NotAllowedNow,
    Problem,
    StoreUnavailable,
    UnknownModel,
    problem_of,
    shown,
)
from producer import rates
from producer.explain import Entry, Invalid, invalid_parameters, plain
from producer.openai.errors import document as openai_document
from producer.openai.errors import is_openai, not_here

MEDIA_TYPE = "application/problem+json"
STORE_DOWN = (
    redis_errors.ConnectionError,  # BusyLoadingError too
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
)
# What a plain ResponseError starts with when Redis cannot serve, not when we asked for nonsense.
STORE_REFUSES = ("OOM", "LOADING", "MISCONF", "READONLY", "NOREPLICAS", "BUSY ", "CLUSTERDOWN", "MASTERDOWN")


#: What OpenAI calls some of our problems, by their titles.
CODES = {
    "Unauthorized": "invalid_api_key",
    "Forbidden": "permission_denied",
    "Unknown Model": "model_not_found",
    "Not Found": "not_found",
    "Previous Response Not Found": "previous_response_not_found",
    "Queue Full": "queue_full",
    "Idempotency-Key Reused": "idempotency_key_reused",
}


HEADERS = {
    401: {"www-authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest of a body that is too large is not worth reading
}


class Refusal(HTTPException):
    """A header or the form of the request is not acceptable: which, what it was, what is allowed."""

    def __init__(self, status: int, field: str, value: str | None, allowed: str) -> None:
        given = None if value is None else plain(shown(value))
        self.entry: Entry = {"field": field, "value": given, "message": f"allowed: {allowed}"}
        super().__init__(status, f"{field} is {given or 'missing'}; allowed: {allowed}")


def install(app: FastAPI) -> None:
    """Send every error of the application through this module."""
    app.add_exception_handler(JarvisError, _on_jarvis_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_error)
    for kind in (redis_errors.ResponseError, *STORE_DOWN):
        app.add_exception_handler(kind, _on_redis_error)


def of_error(error: JarvisError, instance: str) -> Response:
    """The answer for one of our own errors; one that should not leave the edge says nothing of itself."""
    problem = problem_of(error)
    if problem.status == 500:
        return unexpected(instance)
    return _answer(
        problem,
        str(error),
        instance,
        entries=entries_of(error),
        retry_after_s=getattr(error, "retry_after_s", None),
        headers=HEADERS.get(problem.status),
        members=_members(error),
        code=_limit_code(error) if isinstance(error, LimitReached) else None,
        retryable=getattr(error, "retryable", None),
    )


def of_status(status: int, detail: str, instance: str, entry: Entry | None = None) -> Response:
    """The answer for what only HTTP knows: no such route, too many headers."""
    problem = Problem(status, "about:blank", HTTPStatus(status).phrase, False)
    return _answer(problem, detail, instance, entries=[entry] if entry else None)


def unexpected(instance: str) -> Response:
    """The answer for a mistake of ours; what it was stands in the log."""
    return _answer(problem_of(JarvisError()), "the server made a mistake; it is in its log", instance)


def _answer(
    problem: Problem,
    detail: str,
    instance: str,
    *,
    entries: list[Entry] | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
    code: str | None = None,
    retryable: bool | None = None,
) -> Response:
    if is_openai(instance):
        # Where the SDKs expect 400 for whatever is wrong with a request.
        status = 400 if problem.status == 422 and problem.title == "Unprocessable Content" else problem.status
        param = entries[0]["field"] if entries else None
        document, media_type = (
            openai_document(status, detail, param, code or CODES.get(problem.title)),
            "application/json",
        )
    else:
        status, media_type = problem.status, MEDIA_TYPE
        document = _document(problem, detail, instance, entries, members)
    retryable = problem.retryable if retryable is None else retryable
    out = {"x-should-retry": "true" if retryable else "false", **(headers or {})}
    if retry_after_s is not None:
        out |= {
            "retry-after": str(max(1, math.ceil(retry_after_s))),
            "retry-after-ms": str(math.ceil(retry_after_s * 1000)),
        }
    return Response(msgspec.json.encode(document), status, out, media_type)


def document_of(error: JarvisError, instance: str) -> dict[str, Any]:
    """The problem document of one of our own errors, for an answer that has several."""
    return _document(problem_of(error), str(error), instance, entries_of(error), _members(error))


def _document(
    problem: Problem,
    detail: str,
    instance: str,
    entries: list[Entry] | None,
    members: Mapping[str, Any] | None,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": instance,
        **(members or {}),
    }
    if entries:
        document |= {"field": entries[0]["field"], "value": entries[0]["value"], "errors": entries}
    return document


def _members(error: JarvisError) -> dict[str, Any]:
    if isinstance(error, UnknownModel):
        return {"known": error.known}
    if isinstance(error, NotAllowedNow):
        return {"state": error.state}
    if isinstance(error, LimitReached):
        return {"violated-policies": list(error.violated)}
    return {}


def _limit_code(error: LimitReached) -> str:
    # OpenAI tells apart what comes back soon from what is used up.
    spent = not error.retryable or any(name.startswith("cost-") for name in error.violated)
    return "insufficient_quota" if spent else "rate_limit_exceeded"


def entries_of(error: JarvisError) -> list[Entry] | None:
    """The fields that an error is about."""
    if isinstance(error, Invalid):
        return error.entries
    if isinstance(error, InvalidField):
        return [{"field": error.field, "value": plain(error.value), "message": f"allowed: {error.allowed}"}]
    if isinstance(error, MalformedBody):
        return [{"field": error.field, "value": None, "message": error.reason}]
    if isinstance(error, UnknownModel):
        return [{"field": error.field, "value": plain(error.value), "message": f"allowed: {', '.join(error.known)}"}]
    field = getattr(error, "field", None)
    return [{"field": field, "value": None, "message": str(error)}] if field else None


async def _on_jarvis_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, JarvisError)
    if problem_of(error).status == 500:
        raise error
    if isinstance(error, LimitReached):
        rates.note_refusal(error)
    return of_error(error, request.url.path)


async def _on_redis_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, STORE_DOWN) and not str(error).startswith(STORE_REFUSES):
        raise error
    return of_error(StoreUnavailable(type(error).__name__), request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    plain = error.detail == HTTPStatus(error.status_code).phrase
    detail = f"there is no {request.method} {path} here" if plain else error.detail
    if error.status_code == 404 and (reason := not_here(path)):
        detail += f": {reason}"
    response = of_status(error.status_code, detail, path, error.entry if isinstance(error, Refusal) else None)
    response.headers.update(error.headers or {})
    return response


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_error(invalid_parameters(error.errors()), request.url.path)
