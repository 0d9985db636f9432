"""A job and its result as they go over the wire; field by field what `schemas.py` documents.

A job that has just been accepted is told from what was asked and what the queue answered; Redis is not read for it.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import Response

from common.jobs import JobRecord, JobSpec, Submitted, parse_step
from common.results import StoredResult
from common.settings import Settings
from common.states import State

JSON = "application/json"
DEEP = 50  # counting a place takes Redis about as long as a submit up to here, and longer the deeper


class Heads:
    """What the first waiting job of a queue waits for: a free slot, or a worker. Asked once a second for each queue."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[float, str]] = {}

    def words(self, queue: str) -> str | None:
        """What was learnt within the last second."""
        until, words = self._words.get(queue, (0.0, None))
        return words if time.monotonic() < until else None

    def note(self, queue: str, record: JobRecord) -> None:
        """Learn from the record of a job that had none before it."""
        # One that has been taken meanwhile says that there is a worker.
        words = "a free slot" if record.started_at else record.waiting_for if record.queue_position == 1 else None
        if words is not None:
            self._words[queue] = time.monotonic() + 1, words


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
        started_at=None,
        finished_at=None,
        expires_at=(round(first[2] * 1000) + int((spec.ttl_s or settings.default_ttl_s) * 1000)) / 1000,
        run_at=None,
        attempts=0,
        claims=0,
        max_attempts=spec.max_attempts or settings.max_attempts,
        worker=None,
        queue_position=None,
        waiting_for=None,
        error=None,
        usage=None,
        queue_ms=None,
        run_ms=None,
        metadata=spec.metadata,
        retry_of=spec.retry_of,
        history=[first],
    )


def location(job_id: str) -> str:
    """Where a job's record is."""
    return f"/v1/jobs/{job_id}"


def record_out(record: JobRecord) -> dict[str, Any]:
    """A record, for a reader."""
    here = location(record.id)
    return {
        "id": record.id,
        "object": "job",
        "kind": record.kind,
        "model": record.model,
        "served_by": record.served_by,
        "status": record.status,
        "priority": record.priority,
        "user": record.user,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "expires_at": record.expires_at,
        "run_at": record.run_at,
        "attempts": record.attempts,
        "max_attempts": record.max_attempts,
        "claims": record.claims,
        "queue_position": record.queue_position,
        "waiting_for": record.waiting_for,
        "error": record.error,
        "usage": record.usage,
        "metrics": {"queue_ms": record.queue_ms, "run_ms": record.run_ms},
        "metadata": record.metadata,
        "retry_of": record.retry_of,
        "links": {
            "self": here,
            "result": f"{here}/result",
            "events": f"{here}/events",
            "cancel": f"{here}/cancel",
        },
    }


def result_out(found: StoredResult) -> dict[str, Any]:
    """A result, or what stands in its place while there is none or when there never will be one."""
    record = found.record
    return {
        "id": record.id,
        "kind": record.kind,
        "model": record.model,
        "status": record.status,
        "output": found.output,
        "usage": record.usage,
        "error": record.error,
    }


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(document), status, headers, JSON)
