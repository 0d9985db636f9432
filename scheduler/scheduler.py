"""The scheduler: due jobs, rescue of ended leases, expiry, retention, recurring jobs.

Any number may run, there is no leader: every move is one script that does nothing the second time. It sleeps
until the next thing is due, and is woken when something is due earlier.
"""

from __future__ import annotations

import asyncio
import logging
import time

from common.queue import Queue, Swept
from common.service import keep
from scheduler.recurring import Recurring

log = logging.getLogger("jarvis.scheduler")

#: How often blobs and the index are swept; nothing waits for it.
TIDY_S = 60.0


class Scheduler:
    """Looks after one namespace, all its shards."""

    def __init__(self, queue: Queue, recurring: Recurring | None = None) -> None:
        self.queue = queue
        self.recurring = recurring
        self._settings = queue.settings

    async def run(self) -> None:
        """Work until cancelled; outlives restarts of Redis."""
        loops = [keep(log, self._shard, prefix) for prefix in self.queue.keys.prefixes()]
        loops.append(keep(log, self._tidy))
        if self.recurring is not None:
            loops.append(keep(log, self.recurring.run, self.queue))
        await asyncio.gather(*loops)

    async def _shard(self, prefix: str) -> None:
        queue, lease_s = self.queue, self._settings.lease_s
        await queue.prepare()
        # Redis was away, so nobody could renew: live workers get one beat's time before a lease counts as ended.
        rescue_from = time.monotonic() + lease_s / 4 + 0.5
        while True:
            swept = [await queue.promote(prefix), await queue.expire(prefix)]
            if time.monotonic() >= rescue_from:
                swept.append(await self._rescue(prefix))
            else:
                swept.append(Swept(0, 500))
            # Half a lease: a new lease may end sooner than any that was seen.
            await queue.wait_for_schedule(prefix, _sleep_s(swept, lease_s / 2))

    async def _rescue(self, prefix: str) -> Swept:
        rescued = await self.queue.rescue(prefix)
        if rescued.moved:
            log.warning("rescued %d jobs whose workers fell silent", rescued.moved)
        return rescued

    async def _tidy(self) -> None:
        while True:
            for prefix in self.queue.keys.prefixes():
                await self.queue.trim(prefix, self._settings.retention_s)  # no younger record can be gone
            await self.queue.blobs.sweep()
            await asyncio.sleep(min(TIDY_S, max(1.0, self._settings.retention_s)))


def _sleep_s(swept: list[Swept], longest_s: float) -> float:
    if any(one.moved for one in swept):
        return 0.01  # there may be more than one call's worth
    return min([longest_s, *(one.next_ms / 1000 for one in swept if one.next_ms is not None)])
