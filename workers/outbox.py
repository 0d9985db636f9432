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
from common.jobs import Awaited, ClaimedJob
from common.queue import Event, Outcome, Queue

log = logging.getLogger("jarvis.worker")

#: Events that may wait to be written before an emitting job has to wait too (Redis is away or slow).
EVENTS_WAITING = 10_000
#: Events and outcomes in one call: bounds how long one script keeps Redis busy.
WRITE_BATCH = 500
#: Events of a job that nobody reads as they come wait so long for each other. Who comes later reads them all; a worker
#: that dies takes with it what only waited, and the next one makes it again.
UNREAD_S = 0.25
#: Of a young job they wait no longer than this part of the time since its first one: many a reader comes right after
#: the job began, since the web process is as busy then as the worker.
YOUNG_PART = 1 / 3
LEAST_S = 0.02
#: So long a job whose caller comes for its events counts as read before it is noted that somebody reads it.
COMING_S = 2.0
MERGED = {"text", "ids", "index"}


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
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._unread: dict[str, float] = {}  # leases of jobs that nobody reads, as the last emit said: written at
        self._began: dict[str, float] = {}  # leases: first seen to be unread at (CLOCK_MONOTONIC, s; as above)
        self._coming: dict[str, float] = {}  # leases: their reader is on his way, until (as above)
        self._urgent: set[str] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def expect(self, job: ClaimedJob, awaited: Awaited) -> None:
        """What is known of the job's readers as it begins, before any of its events is written."""
        now = time.monotonic()
        if awaited == "events":
            self._coming[job.lease] = now + COMING_S
        elif awaited == "end":
            self._began[job.lease] = now - UNREAD_S / YOUNG_PART  # as if it were no longer young
            self._unread[job.lease] = _next_round(now)

    async def add_event(self, event: Event) -> None:
        """Have an event written; waits only when too many are waiting."""
        self.add(event)
        while len(self._events) > EVENTS_WAITING:
            self._room.clear()
            await self._room.wait()

    def add(self, event: Event) -> None:
        """Have an event written, however many are waiting: for who adds one a job, and extends it while it waits."""
        self._events.append(event)
        if event.event == "token":
            self._growing[event.job.lease] = event
        else:
            self._growing.pop(event.job.lease, None)
        if event.job.lease not in self._unread or len(self._events) >= WRITE_BATCH:
            self._something.set()
        else:
            self._set_alarm(self._unread[event.job.lease])

    def is_read(self, job: ClaimedJob) -> bool:
        """Whether somebody reads the job's events as they come, as far as is known."""
        return job.lease not in self._unread

    def extend(self, job: ClaimedJob, data: dict[str, Any]) -> bool:
        """Add tokens to the job's last event, when that is one of tokens and still waits to be written."""
        event = self._growing.get(job.lease)
        if event is None:
            return False
        if (len(data) > 2 or len(event.data) > 2) and not _extended(event.data, data):
            return False
        event.data["text"] += data["text"]
        if "ids" in data:
            event.data["ids"] = event.data.get("ids", []) + data["ids"]
        return True

    def add_outcome(self, outcome: Outcome) -> None:
        """Have a job's end written, after its events."""
        self._outcomes.append(outcome)
        self._urgent.add(outcome.job.lease)
        self._something.set()

    def forget(self, job: ClaimedJob) -> None:
        """The job's end is stored, or it is another worker's."""
        self._unread.pop(job.lease, None)
        self._began.pop(job.lease, None)
        self._coming.pop(job.lease, None)
        self._urgent.discard(job.lease)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            events = self._due()
            outcomes, self._outcomes = self._outcomes, []
            for start in range(0, len(events), WRITE_BATCH):
                await self._emit(events[start : start + WRITE_BATCH])
            self._room.set()
            # All in one call, with the first not sent ahead: what fills their slots begins together, as one pass of an
            # engine. (In parts, jobs that only wait run 0.6 % faster; an engine of passes does half as many.)
            for start in range(0, len(outcomes), WRITE_BATCH):
                await self._commit(outcomes[start : start + WRITE_BATCH])

    async def _emit(self, events: list[Event]) -> None:
        emitted = await patiently(self._queue.emit, self._queue_name, events)
        if emitted.unread or self._unread:  # not with many streams, where this runs at every step of the engine
            self._hold_back(emitted.unread, events)
        self._lost(emitted.lost)

    def _hold_back(self, unread: set[str], written: list[Event]) -> None:
        """Say until when the next events of these jobs may wait: those of a job that is read do not."""
        now = time.monotonic()
        for lease, job_id in {event.job.lease: event.job.id for event in written}.items():
            if job_id not in unread:
                self._unread.pop(lease, None)
                continue
            if self._coming.get(lease, 0.0) > now:
                continue
            wait_s = max(LEAST_S, (now - self._began.setdefault(lease, now)) * YOUNG_PART)
            self._unread[lease] = now + wait_s if wait_s < UNREAD_S else _next_round(now)

    def _due(self) -> list[Event]:
        """What is to be written now. Events of one job go together, in their order."""
        now = time.monotonic()
        later = self._unread if len(self._events) < WRITE_BATCH else {}
        due: list[Event] = []
        kept: list[Event] = []
        for event in self._events:
            lease = event.job.lease
            (kept if later.get(lease, 0.0) > now and lease not in self._urgent else due).append(event)
        self._events = kept
        if kept:
            self._set_alarm(min(later[event.job.lease] for event in kept))
        for event in due:
            self._growing.pop(event.job.lease, None)
        self._urgent.clear()
        return due

    def _set_alarm(self, moment: float) -> None:
        if self._alarm is not None:
            if self._rings_at <= moment:
                return
            self._alarm.cancel()
        self._rings_at = moment
        wait_s = max(0.0, moment - time.monotonic())
        self._alarm = asyncio.get_running_loop().call_later(wait_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._something.set()


def _next_round(now: float) -> float:
    # Those that wait longest are written together.
    return (now // UNREAD_S + 1) * UNREAD_S


def _extended(grown: dict[str, Any], data: dict[str, Any]) -> bool:
    """Add what is more than text and ids, unless it is of another one of the job's answers."""
    if grown.get("index") != data.get("index"):
        return False
    for detail in data.keys() - MERGED:
        grown[detail] = grown[detail] + data[detail] if detail in grown else data[detail]
    return True


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
