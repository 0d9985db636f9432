"""What a worker has yet to write: events of running jobs and the ends of finished ones.

One writer: a job's events are written before its end is, and while one call is under way the next batch gathers,
so that what a call costs is shared by all that came meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
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
#: With more streams than this at once, events wait for each other: what they cost all processes, of which a stream
#: gains nothing that anybody sees, is the engine's. A job's first event, and those of a job that has ended, go at once.
FEW_STREAMS = 8
#: So long for each event that waits, but never longer than PACE_MAX_S: ten events a second are a stream still.
PACE_S = 0.0015
PACE_MAX_S = 0.1


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
        self._urgent: set[str] = set()
        self._hurry = asyncio.Event()

    async def add_event(self, event: Event) -> None:
        """Have an event written; waits only when too many are waiting."""
        self._events.append(event)
        if event.event == "token":
            self._growing[event.job.lease] = event
        else:
            self._growing.pop(event.job.lease, None)
        if event.seq == event.job.seq + 1:
            self._is_urgent(event.job)
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
        self._is_urgent(outcome.job)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._something.wait()
            await self._pace()
            self._something.clear()
            events = self._due()
            outcomes, self._outcomes = self._outcomes, []
            for start in range(0, len(events), WRITE_BATCH):
                some = events[start : start + WRITE_BATCH]
                self._lost(await patiently(self._queue.emit, self._queue_name, some))
            self._room.set()
            for start in range(0, len(outcomes), WRITE_BATCH):
                await self._commit(outcomes[start : start + WRITE_BATCH])
            if self._events:
                self._something.set()

    def _early_s(self) -> float:
        waiting = len(self._events)
        if waiting <= FEW_STREAMS:
            return 0.0
        return self._written_at + min(PACE_MAX_S, waiting * PACE_S) - time.monotonic()

    async def _pace(self) -> None:
        early_s = self._early_s()
        if early_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(early_s):
                    await self._hurry.wait()

    def _due(self) -> list[Event]:
        """What is to be written now: everything, or what is urgent. Those of one job go together, in their order."""
        if self._early_s() <= 0:
            due, self._events = self._events, []
            self._written_at = time.monotonic()
        else:
            due = [event for event in self._events if event.job.lease in self._urgent]
            self._events = [event for event in self._events if event.job.lease not in self._urgent]
        for event in due:
            self._growing.pop(event.job.lease, None)
        self._urgent.clear()
        self._hurry.clear()
        return due

    def _is_urgent(self, job: ClaimedJob) -> None:
        self._urgent.add(job.lease)
        self._hurry.set()
        self._something.set()


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
