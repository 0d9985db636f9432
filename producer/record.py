"""A job and its result as they go over the wire; field by field what `schemas.py` documents."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import Response

from common.jobs import JobRecord
from common.results import StoredResult

JSON = "application/json"
DEEP = 50  # counting a place takes Redis about as long as a submit up to here, and longer the deeper


class DeepQueues:
    """Queues where a new job's place is not counted: in a deep one that costs Redis more than many submits."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __contains__(self, queue: str) -> bool:
        return time.monotonic() < self._until.get(queue, 0)

    def note(self, queue: str, record: JobRecord) -> None:
        """Learn from a place that was counted; it is counted again a second later."""
        if (record.queue_position or 0) > DEEP:
            self._until[queue] = time.monotonic() + 1


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


def result_out(record: JobRecord, result: StoredResult | None) -> dict[str, Any]:
    """A result, or what stands in its place while there is none or when there never will be one."""
    return {
        "id": record.id,
        "kind": record.kind,
        "status": record.status,
        "output": result.output if result else None,
        "usage": record.usage,
        "error": record.error,
    }


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(document), status, headers, JSON)
