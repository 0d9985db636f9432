"""One blocking reader per shard tells every follower in this process that its job has news.

It only wakes; what happened is read from the job itself. A missed or doubled wake therefore costs a read, never
an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError


class Wakes:
    """Followers by job id, and the readers that wake them."""

    def __init__(self, client: redis.Redis, prefixes: list[str], block_s: float) -> None:
        self._redis = client
        self._prefixes = prefixes
        self._block_ms = int(block_s * 1000)
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._started: list[asyncio.Event] = []

    @asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the job may have news; set nothing is missed from here on."""
        wake = asyncio.Event()
        self._listeners.setdefault(job_id, set()).add(wake)
        try:
            await self._start()
            yield wake
        finally:
            listeners = self._listeners[job_id]
            listeners.discard(wake)
            if not listeners:
                del self._listeners[job_id]

    async def close(self) -> None:
        """Stop the readers."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers.clear()

    async def _start(self) -> None:
        if not self._readers:
            self._started = [asyncio.Event() for _ in self._prefixes]
            pairs = zip(self._prefixes, self._started, strict=True)
            self._readers = [asyncio.create_task(self._read(prefix, started)) for prefix, started in pairs]
        for started in self._started:
            with suppress(TimeoutError):  # Redis is away: followers look for themselves until it is back
                await asyncio.wait_for(started.wait(), 1)

    async def _read(self, prefix: str, started: asyncio.Event) -> None:
        streams: Any = {}
        while True:
            try:
                if not streams:
                    streams = await self._ends(prefix)
                    started.set()
                    self._wake(list(self._listeners))  # whatever happened while nobody read
                for stream, entries in await self._redis.xread(streams, block=self._block_ms):
                    streams[stream.decode()] = entries[-1][0]
                    self._wake(_jobs(entries))
            except (RedisError, OSError):
                streams = {}
                await asyncio.sleep(0.1)

    async def _ends(self, prefix: str) -> dict[str, bytes]:
        # "$" would be asked anew by every read, and what came between two reads be missed.
        names = [f"{prefix}events", f"{prefix}ticks"]
        last = [await self._redis.xrevrange(name, count=1) for name in names]
        return {name: entries[0][0] if entries else b"0-0" for name, entries in zip(names, last, strict=True)}

    def _wake(self, jobs: list[str]) -> None:
        for job_id in jobs:
            for wake in self._listeners.get(job_id, ()):
                wake.set()


def _jobs(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[str]:
    found = []
    for _, fields in entries:
        ticked = fields.get(b"j")
        names = ticked.split() if ticked is not None else fields
        found += [name.decode() for name in names]
    return found
