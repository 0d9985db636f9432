"""Takes batches that nobody works on, a few at a time, and sees each through. Any number of these may run."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import socket

from redis.exceptions import RedisError

from common.batches import Batches, Claimed
from common.errors import StoreUnavailable
from producer.batches.run import Lost, Run
from producer.batches.stretches import Tools

log = logging.getLogger("jarvis.batches")

TIDY_S = 60.0
PAUSE_S = 0.5


class Runner:
    """Works until it is cancelled; outlives restarts of Redis."""

    def __init__(self, tools: Tools, batches: Batches) -> None:
        self.tools = tools
        self.batches = batches
        self._name = f"{socket.gethostname()[:40]}.{os.getpid()}.{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)
        self._runs: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take batches and tidy up; when cancelled, let others go on with what is under way."""
        tidying = asyncio.create_task(self._tidy())
        try:
            while True:
                try:
                    await self._take()
                except (StoreUnavailable, RedisError, OSError) as error:
                    log.warning("Redis is away (%s)", error)
                    await asyncio.sleep(PAUSE_S)
        finally:
            for task in (tidying, *self._runs):
                task.cancel()
            await asyncio.gather(tidying, *self._runs, return_exceptions=True)

    async def _take(self) -> None:
        if len(self._runs) >= self.tools.settings.batch_runs:
            await asyncio.wait(self._runs, return_when=asyncio.FIRST_COMPLETED)
        owner = f"{self._name}.{next(self._numbers)}"  # a name is used once: what an earlier claim began is another's
        claimed = await self.batches.claim(owner)
        if claimed is None:
            await self.batches.wait_for_work(self.tools.settings.bell_timeout_s)
            return
        task = asyncio.create_task(self._see_through(claimed, owner))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    def _share(self) -> int:
        return max(1, self.tools.settings.batch_jobs // max(1, len(self._runs)))

    async def _see_through(self, claimed: Claimed, owner: str) -> None:
        try:
            await Run(self.tools, self.batches, claimed, owner, self._share).work()
        except Lost:
            log.warning("batch %s: its lease ended; another process goes on with it", claimed.id)
        except (StoreUnavailable, RedisError) as error:
            log.warning("batch %s: Redis is away (%s); it is taken up again", claimed.id, error)
            await asyncio.sleep(PAUSE_S)
            await self._release(claimed, owner)
        except asyncio.CancelledError:
            await self._release(claimed, owner)
            raise
        except Exception:
            # Its lease is left to end: whatever it is, it is not tried at once again.
            log.exception("batch %s: a mistake of ours", claimed.id)

    async def _release(self, claimed: Claimed, owner: str) -> None:
        try:
            await self.batches.release(claimed.id, owner)
        except (StoreUnavailable, RedisError):
            log.warning("batch %s is taken up again when its lease ends", claimed.id)

    async def _tidy(self) -> None:
        while True:
            try:
                await self.tools.here.files.tidy()
                await self.batches.tidy()
            except (StoreUnavailable, RedisError, OSError) as error:
                log.warning("could not tidy up: %s", error)
            await asyncio.sleep(TIDY_S)
