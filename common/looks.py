"""Followers that begin together look at their jobs together: what comes while a call is under way goes out in the next.

The look also notes that the jobs are read, so that their workers tell the web processes of each token at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

import redis.asyncio as redis
from redis.exceptions import RedisError

from common import scripts

#: Jobs in one call, and events of each: both bound how long one script keeps Redis busy.
AT_ONCE = 64
MOST_EVENTS = 200


class Seen(NamedTuple):
    """A job at one moment, as Redis has it; `history` is None when it is not there."""

    history: bytes | None
    error: bytes | None = None
    tokens: list[tuple[bytes, list[bytes]]] = []  # noqa: RUF012 - never written to


class Asked(NamedTuple):
    """One look that is not taken yet, and who waits for it."""

    job_id: str
    after: int
    read_ms: int
    seen: asyncio.Future[Seen | None]


class Looks:
    """Gathers the first looks at jobs of one shard."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self._prefix = prefix
        self._asked: deque[Asked] = deque()
        self._task: asyncio.Task[None] | None = None

    async def look(self, job_id: str, after: int, read_s: float) -> Seen | None:
        """The job as it stands, with its token events above `after`; it is noted as read for so long.

        None when there are too many for one look, or Redis does not answer: then the job itself must be read.
        """
        asked = Asked(job_id, after, int(read_s * 1000), asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._task is None:
            self._task = asyncio.create_task(self._look_at_all())
        return await asked.seen

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_at_all(self) -> None:
        try:
            while self._asked:
                some = [self._asked.popleft() for _ in range(min(AT_ONCE, len(self._asked)))]
                found: list[Seen | None] = [None] * len(some)
                try:
                    found = await self._look_at(some)
                except (RedisError, OSError):
                    pass  # each looks for itself
                finally:
                    _tell(some, found)
        finally:
            _tell(list(self._asked), [None] * len(self._asked))
            self._asked.clear()
            self._task = None

    async def _look_at(self, some: list[Asked]) -> list[Seen | None]:
        args: list[Any] = [max(asked.read_ms for asked in some), MOST_EVENTS]
        for asked in some:
            args += (asked.job_id, asked.after)
        return [_seen(row) for row in await scripts.run(self._redis, "follow", self._prefix, *args)]


def _tell(some: list[Asked], found: list[Seen | None]) -> None:
    for asked, seen in zip(some, found, strict=True):
        if not asked.seen.done():
            asked.seen.set_result(seen)


def _seen(row: list[Any]) -> Seen | None:
    if row[0] is None:
        return Seen(None)
    return Seen(*row) if len(row[2]) < MOST_EVENTS else None
