"""What the soak does to the formation: one fault after another, chosen by a seeded chance."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.faults.formation import LEASE_S, Formation, Kept
from tests.faults.proxy import Proxy


class Harm:
    """Workers killed and stopped, connections cut, silent and slow, Redis killed: acceptance tests 1, 3, 6 and 8."""

    def __init__(self, formation: Formation, workers: list[Kept], proxies: list[Proxy], seed: int) -> None:
        self.formation = formation
        self.mortal = workers[1:]  # the first is spared from SIGKILL, so that its memory can be watched
        self.workers = workers
        self.proxies = proxies
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        faults: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.kill_worker, 4),
            (self.stop_worker, 3),
            (self.cut, 3),
            (self.silence, 2),
            (self.half_open, 2),
            (self.latency, 2),
            (self.lost_replies, 2),
            (self.kill_redis, 2),
        ]
        self._faults = [fault for fault, _ in faults]
        self._weights = [weight for _, weight in faults]

    async def run(self) -> None:
        """One fault after another until cancelled; what is under way is undone then."""
        try:
            while True:
                await asyncio.sleep(self.chance.uniform(1, 4))
                [fault] = self.chance.choices(self._faults, self._weights)
                self.done[fault.__name__] += 1
                await fault()
        finally:
            self.undo()

    def undo(self) -> None:
        """No process is stopped and no proxy disturbs any more; Redis runs."""
        for worker in self.workers:
            worker.send(signal.SIGCONT)
        for proxy in self.proxies:
            proxy.silent = proxy.half_open = False
            proxy.delay_s = proxy.lose = 0.0
        if not self.formation.redis.running:
            self.formation.redis.start()

    async def kill_worker(self) -> None:
        """SIGKILL: it is started again at once."""
        self.chance.choice(self.mortal).kill()

    async def stop_worker(self) -> None:
        """SIGSTOP, for longer than a lease or not, and SIGCONT."""
        worker = self.chance.choice(self.workers)
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.5, 3 * LEASE_S))
        worker.send(signal.SIGCONT)

    async def kill_redis(self) -> None:
        """SIGKILL and, after a while, a start with its append-only file."""
        await self.formation.kill_redis()
        await asyncio.sleep(self.chance.uniform(0.2, 3))
        await asyncio.to_thread(self.formation.redis.start)

    async def cut(self) -> None:
        """Break every connection of one process."""
        self.chance.choice(self.proxies).cut()

    async def silence(self) -> None:
        """A cut cable."""
        proxy = self.chance.choice(self.proxies)
        proxy.silent = True
        await asyncio.sleep(self.chance.uniform(0.5, 3 * LEASE_S))
        proxy.silent = False

    async def half_open(self) -> None:
        """Requests arrive, replies do not."""
        proxy = self.chance.choice(self.proxies)
        proxy.half_open = True
        await asyncio.sleep(self.chance.uniform(0.5, 3 * LEASE_S))
        proxy.half_open = False

    async def latency(self) -> None:
        """Every reply comes late."""
        proxy = self.chance.choice(self.proxies)
        proxy.delay_s = self.chance.uniform(0.05, 0.5)
        await asyncio.sleep(self.chance.uniform(1, 5))
        proxy.delay_s = 0.0

    async def lost_replies(self) -> None:
        """Five of a hundred replies are lost."""
        proxy = self.chance.choice(self.proxies)
        proxy.lose = 0.05
        await asyncio.sleep(self.chance.uniform(2, 5))
        proxy.lose = 0.0
