"""What readers see of many jobs at once: lists of them, and how the queues, their workers and what is parked stand."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import redis.asyncio as redis

from common import scripts
from common.jobs import JobRecord, Priority, decode
from common.keys import Keys
from common.records import FIELDS, record_of
from common.settings import Settings
from common.states import State
from common.store import answered

#: Upper bounds of the wait and run histograms, in seconds (`common/lua/job.lua` has the same); then +Inf.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: Most index entries looked at for one page of a list: bounds what a narrow filter may cost.
SCAN = 5_000


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
    #: state:<state> moves; wait:<n> and run:<n> jobs in bucket n, from 1; wait:sum, run:sum in ms
    counts: dict[str, int]


class Parked(msgspec.Struct, frozen=True):
    """Something that must not be run, and why."""

    id: str
    queue: str
    reason: str
    parked_at: float


class Lists:
    """Reads of many jobs over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.shards)

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
            pipe.hmget(self.keys.job(job_id), FIELDS)
        rows = await answered(pipe.execute())
        return [record_of(job_id, row) for job_id, row in zip(ids, rows, strict=True) if row[0] is not None]

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
