"""What the handlers of one web process work with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from common.api_keys import ApiKeys
from common.batches import Batches
from common.catalogue import Catalogue
from common.files import Files
from common.jobs import JobRecord, JobSpec, Submitted
from common.queue import Queue
from common.results import Results, StoredResult
from common.settings import Settings
from producer import follow, rates
from producer.auth import who
from producer.record import DEEP, answer, location, new_record, polled, record_out
from producer.submit import Submitter


@dataclass(frozen=True, slots=True)
class Edge:
    """What the handlers work with; one for each process."""

    settings: Settings
    catalogue: Catalogue
    queue: Queue
    results: Results
    submitter: Submitter
    files: Files
    batches: Batches
    stopping: asyncio.Event
    counting: set[str] = field(default_factory=set)  # queues in which a place is being counted

    async def accepted(self, spec: JobSpec, submitted: Submitted) -> JobRecord:
        """The record of a job that has just been submitted, with its place unless the queue is deep or busy."""
        record = new_record(submitted, spec, self.settings)
        if record is None or submitted.ahead is None:
            return await self.results.record(submitted.id)
        if submitted.ahead == 0 and (placed := self.results.waiting.guessed(record, 0)):
            return placed
        if submitted.ahead > DEEP or spec.queue in self.counting:
            return self.results.waiting.guessed(record, submitted.ahead, submitted.own_ahead) or record
        return await self._counted(spec.queue, submitted.id)

    async def _counted(self, queue: str, job_id: str) -> JobRecord:
        # One at a time: counting costs more than submitting, and callers who come in crowds do not read their places.
        self.counting.add(queue)
        try:
            return await self.results.record(job_id)
        finally:
            self.counting.discard(queue)

    async def again(self, submitted: Submitted) -> Response:
        """The answer to a job that is run again as this new one."""
        rates.note(submitted.limits)
        record = await self.results.record(submitted.id)
        return answer(record_out(record), 202, {"Location": location(record.id)} | polled(record))

    async def audited(self, request: Request, thing: str, owner: str) -> None:
        """Note that this request is about to change what is another owner's: only an admin's gets so far."""
        asks = who(request)
        if asks.key and owner != asks.owner:
            action = f"{request.method} {request.scope['route'].path}"
            await ApiKeys(self.queue.redis, self.settings).audit(f"key:{asks.key}", action, thing, owner)

    async def held(self, job_id: str, wait_s: float, request: Request, result: bool = True) -> StoredResult:
        """A job, after at most `wait_s` (and `wait_max_s`) seconds."""
        wait_s = min(wait_s, self.settings.wait_max_s)
        return await follow.held(
            self.results, job_id, wait_s, request.receive, self.stopping, result, who(request).sees
        )


def edge(request: Request) -> Edge:
    """This process' edge."""
    found: Edge = request.app.state.edge
    return found


def page_out(data: list[Any], following: str | None) -> dict[str, Any]:
    """A page of a list; `following` is where the next one begins."""
    return {"object": "list", "data": data, "has_more": following is not None, "next": following}
