"""What readers see of one job: its record, result and events. Nothing here changes a job.

A job's events are its state history (in its record) and its token stream, merged by sequence number; both are
read in one transaction, so that an event is never passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import redis.asyncio as redis

from common.blobs import Blobs
from common.errors import NotFound, StoreUnavailable
from common.jobs import JobEvent, JobRecord, Work, decode, parse_step
from common.lists import Lists
from common.looks import Seen
from common.reads import Reads
from common.records import FIELDS, ended, merged, owned, record_of, state_events, token_event
from common.settings import Settings
from common.states import State
from common.store import answered
from common.vectors import rendered
from common.waiting import Waiting
from common.wakes import Wakes


class StoredResult(msgspec.Struct, frozen=True):
    """A finished job's result: `output` is encoded JSON, None when the job did not complete."""

    record: JobRecord
    output: msgspec.Raw | None


class Results(Lists):
    """Reads over one Redis client; `follow` and `wait` share one blocking reader per shard."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        super().__init__(client, settings)
        self.blobs = Blobs(settings)
        self.waiting = Waiting(client, self.keys)
        self.wakes = Wakes(client, self.keys.prefixes(), settings.bell_timeout_s)
        self._reads = Reads(client)

    async def close(self) -> None:
        """Stop the blocking readers."""
        await self.wakes.close()
        await self._reads.close()
        await self.waiting.close()

    async def ready(self) -> None:
        """Raise StoreUnavailable unless Redis answers."""
        await answered(self.redis.ping())

    # -- one job

    # With `owner`, a job of another one is not there: nothing tells it from one that never was.

    async def record(self, job_id: str, position: bool = True, owner: str | None = None) -> JobRecord:
        """A job's record. Raises NotFound, StoreUnavailable."""
        values = await answered(self.redis.hmget(self.keys.job(job_id), FIELDS))
        record = owned(job_id, values, owner)
        return await self.placed(record) if position else record

    async def placed(self, record: JobRecord) -> JobRecord:
        """A record with its place in the line, its reason and its eta; a newer one if it has moved on."""
        if record.terminal:
            return record
        placed: JobRecord | None = await answered(self.waiting.placed(record))
        return placed or await self.record(record.id)

    async def result(self, job_id: str) -> StoredResult | None:
        """A terminal job's result, None while there is none yet. Raises NotFound, StoreUnavailable."""
        found = await self.look(job_id)
        return found if found.record.terminal else None

    async def look(self, job_id: str, result: bool = True, owner: str | None = None) -> StoredResult:
        """A job as it stands, without its place, in one read. Raises NotFound, StoreUnavailable."""
        values = await self._reads.read(self.keys.job(job_id), [*FIELDS, "result"] if result else FIELDS)
        raw = values.pop() if result else None
        record = owned(job_id, values, owner)
        return StoredResult(record, await self.rendered(raw) if raw else None)

    async def whole(self, job_id: str, owner: str | None = None) -> tuple[StoredResult, Work]:
        """A job as it stands, and what it was asked, in one read. Raises NotFound, StoreUnavailable."""
        fields = [*FIELDS, "result", "work"]
        *values, raw, work = await answered(self.redis.hmget(self.keys.job(job_id), fields))
        record = owned(job_id, values, owner)
        found = StoredResult(record, await self.rendered(raw) if raw else None)
        return found, decode(await self.blobs.load(work), type=Work)

    async def rendered(self, raw: bytes) -> msgspec.Raw:
        """A stored result as a reader sees it. Raises FileNotFoundError when its blob's time is over."""
        body = await self.blobs.load(raw)
        large = len(body) > self.settings.inline_bytes
        return await asyncio.to_thread(rendered, body) if large else rendered(body)

    async def looks(self, job_ids: Sequence[str]) -> list[tuple[JobRecord, bytes] | None]:
        """Jobs as they stand and what is stored as their results (b"" while there is none), in one round trip.

        None for those that are gone. `rendered` makes a stored result what a reader sees.
        """
        pipe = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(self.keys.job(job_id), [*FIELDS, "result"])
        rows = await answered(pipe.execute())
        return [
            (record_of(job_id, row[:-1]), row[-1] or b"") if row[0] is not None else None
            for job_id, row in zip(job_ids, rows, strict=True)
        ]

    async def states(self, job_ids: Sequence[str]) -> list[State | None]:
        """Where jobs stand, in one round trip; None for those that are gone."""
        pipe = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hget(self.keys.job(job_id), "history")
        rows = await answered(pipe.execute())
        return [None if row is None else parse_step(row.decode().rpartition(" ")[2])[1] for row in rows]

    async def wait(self, job_id: str, timeout_s: float) -> JobRecord:
        """The record as soon as it is terminal, or as it stands when the time is over."""
        return (await self.finished(job_id, timeout_s, result=False)).record

    async def finished(
        self, job_id: str, timeout_s: float, result: bool = True, owner: str | None = None
    ) -> StoredResult:
        """As `wait`, with the result, which comes with the record of the job's end in one read.

        Raises NotFound and StoreUnavailable at once: there is nothing to wait for then.
        """
        with self.wakes.listen_for_end(job_id) as listener:
            seen = await self.look(job_id, result, owner)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not seen.record.terminal:
                        # The look every few seconds is a safety net, not the mechanism.
                        await listener.end(self.settings.bell_timeout_s)
                        with suppress(StoreUnavailable):  # a restart of Redis is waited for
                            seen = await self.look(job_id, result)
        return seen if seen.record.terminal else StoredResult(await self.record(job_id), None)

    async def events(self, job_id: str, after: int = 0) -> list[JobEvent]:
        """The job's events with a sequence number above `after`, in order. Raises NotFound, StoreUnavailable."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.hmget(self.keys.job(job_id), ["history", "error"])
        pipe.xrange(self.keys.tokens(job_id), min=f"{after + 1}-0", count=10_000)
        (history, error), tokens = await answered(pipe.execute())
        if history is None:
            raise NotFound(job_id)
        written = [token_event(entry, fields) for entry, fields in tokens]
        if len(written) == 10_000:  # a partial read: no state event may overtake what follows
            return merged(state_events(history, error), written, after, written[-1].seq)
        return merged(state_events(history, error), written, after, None)

    async def emitted(self, job_id: str) -> list[dict[str, Any]]:
        """Data of the token and segment events that earlier deliveries of a job wrote."""
        entries = await answered(self.redis.xrange(self.keys.tokens(job_id)))
        return [decode(fields[b"d"]) for _, fields in entries if fields[b"e"] in (b"token", b"segment")]

    async def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[JobEvent]:
        """Every event above `after` as it happens; ends after the event of a terminal state.

        Outlives restarts of Redis. Raises NotFound when there is no such job (any more).
        """
        async with aclosing(self.follow_together(job_id, after)) as together:
            async for events in together:
                for event in events:
                    yield event

    async def follow_together(self, job_id: str, after: int = 0) -> AsyncGenerator[list[JobEvent]]:
        """As `follow`, what came at the same time together: a reader that is slower than the job catches up."""
        self.keys.of_job(job_id)  # raises
        async with self.wakes.listen(job_id, after) as listener:
            events = await self._first(listener.seen, job_id, after)
            while True:
                if events:
                    yield events
                    after = events[-1].seq
                if ended(events):
                    return
                if not events and await self._over(job_id):
                    # It may have ended since the events were read: they are read once more before leaving.
                    events = await self._patiently(job_id, after)
                    if not events:
                        return
                    continue
                # The look every few seconds is a safety net, not the mechanism.
                heard = await listener.news(after, self.settings.bell_timeout_s)
                events = heard or await self._patiently(job_id, after)

    async def _first(self, seen: Seen | None, job_id: str, after: int) -> list[JobEvent]:
        if seen is None:
            return await self._patiently(job_id, after)
        if seen.history is None:
            raise NotFound(job_id)
        written = [token_event(entry, {b"e": event, b"d": data}) for entry, (_, event, _, data) in seen.tokens]
        return merged(state_events(seen.history, seen.error), written, after, None)

    async def _patiently(self, job_id: str, after: int) -> list[JobEvent]:
        while True:
            try:
                return await self.events(job_id, after)
            except StoreUnavailable:
                await asyncio.sleep(0.2)

    async def _over(self, job_id: str) -> bool:
        try:
            return (await self.record(job_id, position=False)).terminal
        except StoreUnavailable:
            return False
