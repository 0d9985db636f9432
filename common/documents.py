"""A job and its result as they go over the wire; field by field what `producer/answers.py` documents."""

from __future__ import annotations

from typing import Any

from common.jobs import JobRecord
from common.results import StoredResult


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
        "waiting_code": record.waiting_code,
        "eta": None if record.eta is None else {"p50": record.eta.p50, "p90": record.eta.p90},
        "error": record.error,
        "usage": record.usage,
        "metrics": {"queue_ms": record.queue_ms, "run_ms": record.run_ms, "gpu_ms": record.gpu_ms},
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
