"""What a worker has yet to write: events of running jobs and the ends of finished ones.

One writer: a job's events are written before its end is, and while one call is under way the next batch gathers,
so that what a call costs is shared by all that came meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from common.errors import StoreUnavailable
from common.jobs import ClaimedJob
from common.queue import Event, Outcome, Queue

log = logging.getLogger("jarvis.worker")

#: Events that may wait to be written before an emitting job has to wait too (Redis is away or slow).
EVENTS_WAITING = 10_000
#: Events and outcomes in one call: bounds how long one script keeps Redis busy.
WRITE_BATCH = 500
#: With more streams than this at once, events are written at most every PACE_S: what a stream gains in smoothness
#: beyond 40 events a second nobody sees, and the engine needs the processor.
FEW_STREAMS = 8
PACE_S = 0.025


class Outbox:
    """Gathers and writes; `lost` hears of leases that are gone, `commit` stores a batch of ends."""

    def __init__(
        self,
        queue: Queue,
        queue_name: str,
        lost: Callable[[list[str]], None],
        commit: Callable[[list[Outcome]], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._queue_name = queue_name
        self._lost = lost
        self._commit = commit
        self._events: list[Event] = []
        self._outcomes: list[Outcome] = []
        self._growing: dict[str, Event] = {}
        self._written_at = 0.0
        self._something = asyncio.Event()
        self._room = asyncio.Event()

    async def add_event(self, event: Event) -> None:
        """Have an event written; waits only when too many are waiting."""
        self._events.append(event)
        if event.event == "token":
            self._growing[event.job.lease] = event
        else:
            self._growing.pop(event.job.lease, None)
        self._something.set()
        while len(self._events) > EVENTS_WAITING:
            self._room.clear()
            await self._room.wait()

    def extend(self, job: ClaimedJob, data: dict[str, Any]) -> bool:
        """Add tokens to the job's last event, when that is one of tokens and still waits to be written."""
        event = self._growing.get(job.lease)
        if event is None:
            return False
        event.data["text"] += data["text"]
        event.data["ids"] = event.data.get("ids", []) + data.get("ids", [])
        return True

    def add_outcome(self, outcome: Outcome) -> None:
        """Have a job's end written, after its events."""
        self._outcomes.append(outcome)
        self._something.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._something.wait()
            await self._pace()
            self._something.clear()
            self._written_at = time.monotonic()
            self._growing.clear()
            events, self._events = self._events, []
            outcomes, self._outcomes = self._outcomes, []
            for start in range(0, len(events), WRITE_BATCH):
                some = events[start : start + WRITE_BATCH]
                self._lost(await patiently(self._queue.emit, self._queue_name, some))
            self._room.set()
            for start in range(0, len(outcomes), WRITE_BATCH):
                await self._commit(outcomes[start : start + WRITE_BATCH])

    async def _pace(self) -> None:
        early_s = self._written_at + PACE_S - time.monotonic()
        if early_s > 0 and len(self._events) > FEW_STREAMS and not self._outcomes:
            await asyncio.sleep(early_s)


async def patiently(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Call until Redis answers. Every move may be repeated, so nothing is done twice."""
    pause_s = 0.02
    while True:
        try:
            return await call(*args)
        except (RedisError, OSError, StoreUnavailable) as error:
            log.log(logging.DEBUG if pause_s < 1 else logging.WARNING, "Redis: %s: %s", type(error).__name__, error)
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
