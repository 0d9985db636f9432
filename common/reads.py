"""Reads of jobs that begin together go to Redis together: what comes while calls are under way goes in the next one.

A read that comes alone goes at once, by the shortest way.

Of a batch of short jobs that end at the same time, each has a caller who waits: one call for all of them costs both
sides little more than one for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import redis.asyncio as redis

from common.store import answered

#: Jobs in one call: bounds how long it keeps Redis busy, and how much comes back at once.
AT_ONCE = 64
#: Calls under way at a time: while Redis answers one, this process makes and reads the other.
CALLS = 2

Values = list[bytes | None]


class Asked(NamedTuple):
    """One read that is not sent yet, and who waits for it."""

    key: str
    fields: Sequence[str]
    values: asyncio.Future[Values]


class Reads:
    """Gathers the reads of one process."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._asked: deque[Asked] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._alone = 0  # reads under way that are no calls of these: one or none

    async def read(self, key: str, fields: Sequence[str]) -> Values:
        """A hash's fields, None for each that is not there. Raises StoreUnavailable."""
        if not (self._calls or self._alone):
            return await self._read_alone(key, fields)
        asked = Asked(key, fields, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._call_if_free()
        return await asked.values

    async def close(self) -> None:
        """Read no more; who still waits is cancelled."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _read_alone(self, key: str, fields: Sequence[str]) -> Values:
        self._alone += 1
        try:
            values: Values = await answered(self._redis.hmget(key, list(fields)))
            return values
        finally:
            self._alone -= 1
            self._call_if_free()

    def _call_if_free(self) -> None:
        if self._asked and len(self._calls) + self._alone < CALLS:
            # Its first step comes after those of all who ask in this turn of the loop.
            call = asyncio.create_task(self._read_all())
            self._calls.add(call)
            call.add_done_callback(self._over)

    def _over(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if call.cancelled():
            while self._asked:
                self._asked.popleft().values.cancel()
        else:
            self._call_if_free()  # somebody may have asked since it looked for the last time

    async def _read_all(self) -> None:
        while self._asked:
            some = [self._asked.popleft() for _ in range(min(AT_ONCE, len(self._asked)))]
            try:
                _tell(some, await self._read(some))
            except Exception as error:  # noqa: BLE001 - each of those who wait gets it
                _tell(some, [error] * len(some))
            finally:
                for asked in some:
                    asked.values.cancel()  # those that were told have nothing left to cancel

    async def _read(self, some: list[Asked]) -> list[Values]:
        if len(some) == 1:
            return [await answered(self._redis.hmget(some[0].key, list(some[0].fields)))]
        pipe = self._redis.pipeline(transaction=False)
        for asked in some:
            pipe.hmget(asked.key, list(asked.fields))
        found: list[Values] = await answered(pipe.execute())
        return found


def _tell(some: list[Asked], found: Sequence[Values | Exception]) -> None:
    for asked, values in zip(some, found, strict=True):
        if asked.values.done():
            continue  # its caller has gone
        if isinstance(values, Exception):
            asked.values.set_exception(values)
        else:
            asked.values.set_result(values)
