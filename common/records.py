"""What a job's hash and stream hold, made what a reader sees: its record and its events."""

from __future__ import annotations

from typing import Any

from common.errors import NotFound
from common.jobs import JobError, JobEvent, JobRecord, Step, Ticket, decode, parse_history
from common.states import TERMINAL, State

#: Fields of the hash that make a record.
FIELDS = ["ticket", "history", "worker", "due", "error", "usage", "metadata", "retry_of", "model", "gpu_ms"]


def owned(job_id: str, values: list[bytes | None], owner: str | None) -> JobRecord:
    """A job's record. Raises NotFound when it is gone, or another owner's."""
    if values[0] is None:
        raise NotFound(job_id)
    record = record_of(job_id, values)
    if owner not in (None, record.user):
        raise NotFound(job_id)
    return record


def record_of(job_id: str, values: list[bytes | None]) -> JobRecord:
    """A job's record out of its FIELDS."""
    texts = {name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None}
    history = parse_history(texts["history"])
    ticket = Ticket.parse(texts["ticket"])
    kind, _, model = ticket.queue.partition(":")
    status = history[-1][1]
    started = _last(history, State.IN_PROGRESS)
    finished = history[-1][2] if status in TERMINAL else None
    return JobRecord(
        id=job_id,
        kind=kind,
        model=texts.get("model", model),
        status=status,
        priority=ticket.lane,
        user=ticket.user,
        created_at=history[0][2],
        started_at=started,
        finished_at=finished,
        expires_at=ticket.expires_ms / 1000,
        run_at=int(texts["due"]) / 1000 if "due" in texts else None,
        attempts=ticket.attempts,
        claims=sum(was == State.IN_PROGRESS for _, was, _ in history),
        max_attempts=ticket.tries,
        worker=texts.get("worker"),
        error=_error(texts.get("error"), status),
        usage=decode(texts["usage"]) if "usage" in texts else None,
        queue_ms=_milliseconds(_last(history, State.QUEUED), started),
        run_ms=_milliseconds(started, finished),
        gpu_ms=int(texts["gpu_ms"]) if "gpu_ms" in texts else None,
        metadata=decode(texts["metadata"]) if "metadata" in texts else {},
        retry_of=texts.get("retry_of"),
        history=history,
        queue=ticket.queue,
        units=ticket.units,
    )


def _last(history: list[Step], state: State) -> float | None:
    return next((at for _, was, at in reversed(history) if was == state), None)


def _milliseconds(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None or end < start else round((end - start) * 1000)


def _error(text: str | None, status: State) -> JobError | None:
    # The error of an earlier attempt says nothing about a job that completed in the end.
    if text is None or status in (State.COMPLETED, State.INCOMPLETE):
        return None
    return decode(text, type=JobError)


def state_events(history: bytes, error: bytes | None) -> list[JobEvent]:
    """The state events of a job's history; its error comes with the last one."""
    events = []
    for seq, state, at in parse_history(history.decode()):
        data: dict[str, Any] = {"status": state.value, "at": at}
        if error and state in (State.FAILED, State.CANCELLED, State.EXPIRED):
            data["error"] = decode(error)
        events.append(JobEvent(seq, "state", data))
    return events


def token_event(entry: bytes, fields: dict[bytes, bytes]) -> JobEvent:
    """A token, segment or progress event out of an entry of the job's stream."""
    return JobEvent(int(entry.split(b"-")[0]), fields[b"e"].decode(), decode(fields[b"d"]))


def merged(states: list[JobEvent], tokens: list[JobEvent], after: int, upto: int | None) -> list[JobEvent]:
    """Both in order, those above `after`; with `upto`, no state event beyond it."""
    events = [e for e in states if e.seq > after and (upto is None or e.seq < upto)] + tokens
    return sorted(events, key=lambda event: event.seq)


def ended(events: list[JobEvent]) -> bool:
    """Whether the last of these events is of a terminal state."""
    return bool(events) and events[-1].event == "state" and events[-1].data["status"] in TERMINAL
