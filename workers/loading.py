"""Says that a worker's model is being loaded, so that whoever waits for it knows what for.

A thread with an event loop of its own says so: what is loaded may hold up the worker's loop, for minutes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.exceptions import ResponseError

from common.queue import Queue
from common.settings import Settings
from common.store import UNAVAILABLE

#: Models that are there at once are not announced.
QUICK_S = 0.2
#: How long it holds; said again three times in that time.
HOLDS_S = 30.0


@asynccontextmanager
async def announced(settings: Settings, queue: str, worker: str) -> AsyncIterator[None]:
    """A block in which a model is loaded."""
    over = threading.Event()
    thread = threading.Thread(target=_announce, args=(settings, queue, worker, over), daemon=True, name="loading")
    thread.start()
    try:
        yield
    finally:
        over.set()
        await asyncio.to_thread(thread.join, settings.redis_timeout_s)


def _announce(settings: Settings, queue: str, worker: str, over: threading.Event) -> None:
    if not over.wait(QUICK_S):
        asyncio.run(_until(settings, queue, worker, over))


async def _until(settings: Settings, queue: str, worker: str, over: threading.Event) -> None:
    client = await Queue.connect(settings)
    try:
        holds_s = HOLDS_S
        while holds_s:
            with suppress(*UNAVAILABLE, ResponseError):
                await client.loading(queue, worker, holds_s)
            holds_s = 0 if await asyncio.to_thread(over.wait, HOLDS_S / 3) else HOLDS_S
        with suppress(*UNAVAILABLE, ResponseError):
            await client.loading(queue, worker, 0)
    finally:
        await client.close()
