"""Answers about jobs. One that has just been accepted is told from what was asked; Redis is not read for it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import Response

from common.documents import location as location
from common.documents import record_out as record_out
from common.documents import result_out as result_out
from common.eta import hint_s
from common.jobs import JobRecord, JobSpec, Submitted, parse_step
from common.settings import Settings
from common.states import State

JSON = "application/json"
DEEP = 50  # counting a place takes Redis about as long as a submit up to here, and longer the deeper


def new_record(submitted: Submitted, spec: JobSpec, settings: Settings) -> JobRecord | None:
    """The record of a job that has just been queued, without its place; None when only Redis knows it."""
    if submitted.step is None:
        return None  # an earlier job with the same key
    first = parse_step(submitted.step)
    if first[1] != State.QUEUED:
        return None
    return JobRecord(
        id=submitted.id,
        kind=spec.kind,
        model=spec.model,
        status=State.QUEUED,
        priority=spec.priority,
        user=spec.user,
        created_at=first[2],
        expires_at=(round(first[2] * 1000) + int((spec.ttl_s or settings.default_ttl_s) * 1000)) / 1000,
        max_attempts=spec.max_attempts or settings.max_attempts,
        metadata=spec.metadata,
        retry_of=spec.retry_of,
        history=[first],
        queue=spec.queue,
        units=spec.units,
    )


#: What `polled` says of a job that has ended since it was looked at.
NOW = {"Retry-After": "1", "retry-after-ms": "10"}


def polled(record: JobRecord) -> dict[str, str]:
    """Headers that say when to ask again, by when the job is expected to be done; none once it has ended."""
    if record.terminal:
        return {}
    seconds = hint_s(record.eta, time.time() - record.created_at)
    return {"Retry-After": str(max(1, round(seconds))), "retry-after-ms": str(round(seconds * 1000))}


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(document), status, headers, JSON)
