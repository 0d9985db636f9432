"""What a worker has to say of its runs: their events, and how they ended."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from common.errors import JobFailed
from common.jobs import ClaimedJob, JobError, JobResult, encode
from common.settings import Settings
from common.vectors import stored

#: What becomes of an end: it is stored, was stored by this delivery before, or the lease was lost.
Answer = Literal["stored", "mine", "lost"]


class Outcome(msgspec.Struct, frozen=True):
    """How one run ended; `seq` is the number of the last event the worker wrote for the job.

    `gpu_ms` is the run's part of its worker's busy time (`workers/meter.py`).
    """

    job: ClaimedJob
    kind: Literal["completed", "incomplete", "failed", "retry", "release"]
    seq: int
    body: bytes = b""
    usage: bytes = b""
    delay_ms: int = 0
    gpu_ms: int = 0

    @classmethod
    def done(cls, job: ClaimedJob, seq: int, result: JobResult) -> Outcome:
        """It returned a result."""
        kind: Literal["completed", "incomplete"] = "incomplete" if result.incomplete else "completed"
        body = stored(result.output, result.vectors) if result.vectors else encode(result.output)
        return cls(job, kind, seq, body, encode(result.usage) if result.usage else b"")

    @classmethod
    def failed(cls, job: ClaimedJob, seq: int, error: JobFailed, settings: Settings) -> Outcome:
        """It failed in a way that was handled: another attempt, or the end."""
        message = error.message.encode("utf-8", "replace").decode()  # a lone surrogate has no encoding
        body = encode(JobError(error.code, message))
        if not error.retryable:
            return cls(job, "failed", seq, body)
        delay_s = backoff_s(job.attempts, settings) if error.delay_s is None else error.delay_s
        return cls(job, "retry", seq, body, delay_ms=int(delay_s * 1000))

    @classmethod
    def release(cls, job: ClaimedJob, seq: int) -> Outcome:
        """It was not finished and goes back to the front, without counting as an attempt."""
        return cls(job, "release", seq)


class Event(NamedTuple):
    """A token or progress event to append to a running job's stream."""

    job: ClaimedJob
    seq: int
    event: str
    data: dict[str, Any]


class Emitted(NamedTuple):
    """Leases whose events were not written, since they are lost; ids of the other jobs, as far as nobody reads them."""

    lost: list[str]
    unread: set[str]


def backoff_s(attempts: int, settings: Settings) -> float:
    """The pause before the next attempt: doubles each time, capped, with full jitter over its upper half."""
    ceiling = min(settings.retry_delay_max_s, settings.retry_delay_s * 2.0 ** min(attempts, 40))
    return ceiling * random.uniform(0.5, 1.0)


def ends(outcomes: Sequence[Outcome]) -> list[Any]:
    """Ends of runs, as `committing.lua` takes them."""
    args: list[Any] = []
    for one in outcomes:
        extra = one.delay_ms if one.kind == "retry" else one.usage
        args += (one.job.lease, one.kind, one.seq + 1, one.body, extra, one.gpu_ms)
    return args
