"""What readers see: records, results, events, lists, and how the queues stand. Nothing here changes a job.

A job's events are its state history (in its record) and its token stream, merged by sequence number; both are
read in one transaction, so that an event is never passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import redis.asyncio as redis

from common import scripts
from common.blobs import Blobs
from common.errors import NotFound, StoreUnavailable
from common.jobs import JobError, JobEvent, JobRecord, Priority, Step, Ticket, Work, decode, parse_history, parse_step
from common.keys import Keys
from common.looks import Seen
from common.settings import Settings
from common.states import TERMINAL, State
from common.store import answered
from common.vectors import rendered
from common.waiting import Waiting
from common.wakes import Wakes

_FIELDS = ["ticket", "history", "worker", "due", "error", "usage", "metadata", "retry_of", "model", "gpu_ms"]
#: Upper bounds of the wait and run histograms, in seconds (`common/lua/job.lua` has the same); then +Inf.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: Most index entries looked at for one page of a list: bounds what a narrow filter may cost.
SCAN = 5_000


class StoredResult(msgspec.Struct, frozen=True):
    """A finished job's result: `output` is encoded JSON, None when the job did not complete."""

    record: JobRecord
    output: msgspec.Raw | None


class Page(msgspec.Struct, frozen=True):
    """Part of a list, newest first; `next` continues it, None at its end."""

    records: list[JobRecord]
    next: str | None


class QueueStats(msgspec.Struct, frozen=True):
    """How a queue stands at one moment."""

    queue: str
    kind: str
    model: str
    depth: dict[Priority, int]
    in_progress: int
    workers: int
    users_waiting: int
    oldest_wait_s: float | None
    counts: dict[
        str, int
    ]  # state:<state> moves; wait:<n> and run:<n> jobs in bucket n, from 1; wait:sum, run:sum in ms


class Parked(msgspec.Struct, frozen=True):
    """Something that must not be run, and why."""

    id: str
    queue: str
    reason: str
    parked_at: float


class Results:
    """Reads over one Redis client; `follow` and `wait` share one blocking reader per shard."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.shards)
        self.blobs = Blobs(settings)
        self.waiting = Waiting(client, self.keys)
        self.wakes = Wakes(client, self.keys.prefixes(), settings.bell_timeout_s)

    async def close(self) -> None:
        """Stop the blocking readers."""
        await self.wakes.close()
        await self.waiting.close()

    async def ready(self) -> None:
        """Raise StoreUnavailable unless Redis answers."""
        await answered(self.redis.ping())

    # -- one job

    # With `owner`, a job of another one is not there: nothing tells it from one that never was.

    async def record(self, job_id: str, position: bool = True, owner: str | None = None) -> JobRecord:
        """A job's record. Raises NotFound, StoreUnavailable."""
        values = await answered(self.redis.hmget(self.keys.job(job_id), _FIELDS))
        record = _owned(job_id, values, owner)
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
        fields = [*_FIELDS, "result"] if result else _FIELDS
        values = await answered(self.redis.hmget(self.keys.job(job_id), fields))
        raw = values.pop() if result else None
        record = _owned(job_id, values, owner)
        return StoredResult(record, await self.rendered(raw) if raw else None)

    async def whole(self, job_id: str, owner: str | None = None) -> tuple[StoredResult, Work]:
        """A job as it stands, and what it was asked, in one read. Raises NotFound, StoreUnavailable."""
        fields = [*_FIELDS, "result", "work"]
        *values, raw, work = await answered(self.redis.hmget(self.keys.job(job_id), fields))
        record = _owned(job_id, values, owner)
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
            pipe.hmget(self.keys.job(job_id), [*_FIELDS, "result"])
        rows = await answered(pipe.execute())
        return [
            (_record(job_id, row[:-1]), row[-1] or b"") if row[0] is not None else None
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
        written = [_token_event(entry, fields) for entry, fields in tokens]
        if len(written) == 10_000:  # a partial read: no state event may overtake what follows
            return _merged(_state_events(history, error), written, after, written[-1].seq)
        return _merged(_state_events(history, error), written, after, None)

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
                if _ended(events):
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
        written = [_token_event(entry, {b"e": event, b"d": data}) for entry, (_, event, _, data) in seen.tokens]
        return _merged(_state_events(seen.history, seen.error), written, after, None)

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

    # -- many jobs

    async def list_jobs(
        self,
        user: str | None = None,
        status: State | None = None,
        kind: str | None = None,
        model: str | None = None,
        after: str | None = None,
        limit: int = 50,
        keyed: bool = False,
    ) -> Page:
        """Jobs newest first. A narrow filter may return a short page with a `next`: at most SCAN entries are read.

        `keyed`: of the user's jobs those that came with an API key, however many others there are.
        """
        index = f"index:of:{user}" if keyed else "index"
        records: list[JobRecord] = []
        cursor, scanned = after, 0
        while len(records) < limit and scanned < SCAN:
            entries = await self._index(index, cursor, 200)
            if not entries:
                return Page(records, None)
            scanned += len(entries)
            found = {r.id: r for r in await self.records([e[1] for e in entries if user in (None, e[2])])}
            for entry, job_id, _ in entries:
                cursor = entry
                record = found.get(job_id)
                if record and _matches(record, status, kind, model):
                    records.append(record)
                    if len(records) == limit:
                        break
        return Page(records, cursor)

    async def _index(self, index: str, before: str | None, count: int) -> list[tuple[str, str, str]]:
        # (cursor, id, user) of all shards, newest first; entry ids are times, so that shards merge by them.
        pipe = self.redis.pipeline(transaction=False)
        for shard, prefix in enumerate(self.keys.prefixes()):
            pipe.xrevrange(f"{prefix}{index}", max=_below(before, shard), count=count)
        rows = [
            (_cursor(entry, shard), f"job_{shard:02x}{fields[b'j'].decode()}", fields[b"u"].decode())
            for shard, entries in enumerate(await answered(pipe.execute()))
            for entry, fields in entries
        ]
        rows.sort(key=lambda row: tuple(map(int, row[0].split("-"))), reverse=True)
        return rows[:count]

    async def records(self, ids: list[str]) -> list[JobRecord]:
        """The records of jobs, without their places; those that are gone are left out."""
        if not ids:
            return []
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(self.keys.job(job_id), _FIELDS)
        rows = await answered(pipe.execute())
        return [_record(job_id, row) for job_id, row in zip(ids, rows, strict=True) if row[0] is not None]

    async def queues(self) -> list[QueueStats]:
        """How each queue stands, by name."""
        rows: list[Any] = []
        for prefix in self.keys.prefixes():
            rows += await answered(scripts.run(self.redis, "stats", prefix))
        return sorted(map(_stats, rows), key=lambda stats: stats.queue)

    async def workers(self, queue: str) -> list[dict[str, Any]]:
        """What each live worker of a queue says of itself."""
        q = self.keys.queue(queue)
        names = await answered(self.redis.zrangebyscore(f"{q}workers", time.time() * 1000, "+inf"))
        if not names:
            return []
        about = await answered(self.redis.mget([f"{q}worker:{name.decode()}" for name in names]))
        return [decode(text) for text in about if text]

    async def parked(self, after: str | None = None, limit: int = 50) -> list[Parked]:
        """Parked jobs and entries, newest first; `after` is the id of the last one seen."""
        rows: list[Parked] = []
        for prefix in self.keys.prefixes():
            ids = await answered(self.redis.zrevrange(f"{prefix}parked", 0, -1, withscores=True))
            infos = await answered(self.redis.hgetall(f"{prefix}parked:info"))
            for name, at_ms in ids:
                info = decode(infos.get(name, b"{}"))
                rows.append(Parked(name.decode(), info.get("queue", ""), info.get("reason", ""), at_ms / 1000))
        rows.sort(key=lambda row: row.parked_at, reverse=True)
        start = next((i + 1 for i, row in enumerate(rows) if row.id == after), 0)
        return rows[start : start + limit]


def _cursor(entry: bytes, shard: int) -> str:
    # Two shards may have the same entry id: the shard stands in the cursor's last eight bits.
    at, number = entry.split(b"-")
    return f"{int(at)}-{int(number) * 256 + shard}"


def _below(cursor: str | None, shard: int) -> str:
    # The highest entry of a shard that comes after the cursor in the list, as XREVRANGE wants it.
    if cursor is None:
        return "+"
    at, number = cursor.split("-")
    seq, its_shard = divmod(int(number), 256)
    return f"{at}-{seq}" if shard < its_shard else f"({at}-{seq}"


def _owned(job_id: str, values: list[bytes | None], owner: str | None) -> JobRecord:
    if values[0] is None:
        raise NotFound(job_id)
    record = _record(job_id, values)
    if owner not in (None, record.user):
        raise NotFound(job_id)
    return record


def _record(job_id: str, values: list[bytes | None]) -> JobRecord:
    texts = {name: value.decode() for name, value in zip(_FIELDS, values, strict=True) if value is not None}
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


def _state_events(history: bytes, error: bytes | None) -> list[JobEvent]:
    events = []
    for seq, state, at in parse_history(history.decode()):
        data: dict[str, Any] = {"status": state.value, "at": at}
        if error and state in (State.FAILED, State.CANCELLED, State.EXPIRED):
            data["error"] = decode(error)
        events.append(JobEvent(seq, "state", data))
    return events


def _token_event(entry: bytes, fields: dict[bytes, bytes]) -> JobEvent:
    return JobEvent(int(entry.split(b"-")[0]), fields[b"e"].decode(), decode(fields[b"d"]))


def _merged(states: list[JobEvent], tokens: list[JobEvent], after: int, upto: int | None) -> list[JobEvent]:
    events = [e for e in states if e.seq > after and (upto is None or e.seq < upto)] + tokens
    return sorted(events, key=lambda event: event.seq)


def _ended(events: list[JobEvent]) -> bool:
    return bool(events) and events[-1].event == "state" and events[-1].data["status"] in TERMINAL


def _matches(record: JobRecord, status: State | None, kind: str | None, model: str | None) -> bool:
    return status in (None, record.status) and kind in (None, record.kind) and model in (None, record.model)


def _stats(row: list[Any]) -> QueueStats:
    name, high, normal, low, in_progress, workers, oldest_ms, users, counts = row
    kind, _, model = name.decode().partition(":")
    flat = [value.decode() for value in counts]
    return QueueStats(
        queue=name.decode(),
        kind=kind,
        model=model,
        depth={"high": high, "normal": normal, "low": low},
        in_progress=in_progress,
        workers=workers,
        users_waiting=users,
        oldest_wait_s=None if oldest_ms < 0 else oldest_ms / 1000,
        counts={flat[i]: int(flat[i + 1]) for i in range(0, len(flat), 2)},
    )
