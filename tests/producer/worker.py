"""A worker played by a test: it claims, emits and commits exactly when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult
from common.queue import Event, Outcome, Queue
from common.settings import Settings


async def until(condition: Callable[[], object], deadline_s: float = 5) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still not so after {deadline_s} s")


class PlayedWorker:
    """Speaks to the queue as a worker does."""

    def __init__(self, queue: Queue, name: str) -> None:
        self.queue = queue
        self.name = name
        self.requests = 0
        self.last_seq: dict[str, int] = {}

    async def claim(self) -> ClaimedJob:
        """Take one job, which must be there."""
        (job,) = await self.claim_many(1)
        return job

    async def next(self) -> ClaimedJob:
        """Take one job as soon as there is one."""
        while not (jobs := await self.claim_many(1)):
            await self.queue.wait_for_bell(self.name)
        return jobs[0]

    async def claim_many(self, count: int) -> list[ClaimedJob]:
        """Take up to so many jobs."""
        self.requests += 1
        jobs = await self.queue.claim(self.name, "w1", count, self.requests)
        self.last_seq |= {job.id: job.seq for job in jobs}
        return jobs

    async def say(self, job: ClaimedJob, *texts: str) -> None:
        """Emit one token event for each text."""
        for number, text in enumerate(texts):
            await self.emit(job, "token", {"text": text, "ids": [number]})

    async def emit(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        """Emit one event."""
        self.last_seq[job.id] += 1
        written = Event(job, self.last_seq[job.id], event, data)
        assert (await self.queue.emit(self.name, [written])).lost == []

    async def finish(self, job: ClaimedJob, output: dict[str, Any] | None = None) -> None:
        """Commit a result."""
        result = JobResult(output or {"text": "done", "finish_reason": "stop"}, {"total_tokens": 3})
        await self.commit(Outcome.done(job, self.last_seq[job.id], result))

    async def fail(self, job: ClaimedJob, code: str = "broken") -> None:
        """Commit a failure that no retry can mend."""
        error = JobFailed(code, "it broke")
        await self.commit(Outcome.failed(job, self.last_seq[job.id], error, Settings()))

    async def commit(self, outcome: Outcome) -> None:
        """Commit an outcome, which must be stored."""
        assert await self.queue.commit(self.name, [outcome]) == ["stored"]
