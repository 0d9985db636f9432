"""The worker's heartbeat, a process of its own: renews the leases of the jobs in the slot table.

Neither an engine nor a call that holds the GIL can delay it, since it shares no interpreter with them. It renews
only while the worker lives and is not stopped, and no job beyond its timeout; it dies with the worker, whose end
of the pipe closes. On its output it says `ready` once, and `lost <lease>` for every lease that is gone.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from redis.exceptions import ResponseError

from common.queue import Queue
from common.settings import Settings
from common.store import UNAVAILABLE
from workers.slots import Held, SlotTable

BEATS_PER_LEASE = 4


class Order(msgspec.Struct, frozen=True):
    """What the worker tells its beat first, as one line of JSON; each line after it is a new `about`."""

    settings: dict[str, object]
    queue: str
    worker: str
    pid: int
    fd: int
    slots: int
    about: dict[str, object]


class Beat:
    """Renews until the worker is gone."""

    def __init__(self, queue: Queue, order: Order, table: SlotTable) -> None:
        self._queue = queue
        self._order = order
        self._table = table
        self.about = msgspec.json.encode(order.about)
        self._lease_s = queue.settings.lease_s
        self._renewed: dict[str, float] = {}
        self._told: set[str] = set()
        self._ready = False

    async def run(self) -> None:
        """Beat for ever; ends by cancellation."""
        while True:
            started = time.monotonic()
            if not is_stopped(self._order.pid):
                await self._beat()
            await asyncio.sleep(max(0.0, started + self._lease_s / BEATS_PER_LEASE - time.monotonic()))

    async def _beat(self) -> None:
        now = time.monotonic()
        held = self._table.held()
        renewable = [row.lease for row in held if row.deadline > now]
        order = self._order
        try:
            lost = await self._queue.renew(order.queue, order.worker, self.about, renewable)
        except (*UNAVAILABLE, ResponseError):
            self._tell(self._silent_too_long(held))
            return
        self._renewed = dict.fromkeys(renewable, now)
        self._tell(lost)
        if not self._ready:
            self._ready = True
            print("ready", flush=True)

    def _silent_too_long(self, held: list[Held]) -> list[str]:
        # Redis has not heard of these for a whole lease: another worker may have them by now.
        limit = time.monotonic() - self._lease_s
        return [row.lease for row in held if max(row.since, self._renewed.get(row.lease, 0.0)) < limit]

    def _tell(self, lost: Iterable[str]) -> None:
        lost = set(lost)
        for lease in lost - self._told:
            print(f"lost {lease}", flush=True)
        self._told = lost


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP): such a worker must lose its jobs, a computing one must not."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        state = stat.read_text().rpartition(")")[2].split()[0]
    else:  # not Linux
        state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state[:1] in ("T", "t")


def listen(beat: Beat) -> None:
    """Take in what the worker says of itself, until it is gone."""
    for line in sys.stdin.buffer:
        if line.endswith(b"\n"):  # else the worker died over it
            beat.about = line.strip()


async def main() -> None:
    """Read the order, beat until the worker's end of the pipe closes."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = msgspec.json.decode(line, type=Order)
    settings = Settings.model_validate(order.settings)
    # A call that hangs must leave time for another within the lease.
    hangs_s = settings.lease_s / 3
    settings = settings.model_copy(update={"redis_timeout_s": min(settings.redis_timeout_s, hangs_s)})
    table = SlotTable(os.fdopen(order.fd, "r+b", buffering=0), order.slots)
    beat = Beat(await Queue.connect(settings), order, table)
    beating = asyncio.create_task(beat.run())
    worker_gone = asyncio.create_task(asyncio.to_thread(listen, beat))
    await asyncio.wait([beating, worker_gone], return_when=asyncio.FIRST_COMPLETED)
    if beating.done():
        beating.result()


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)  # the reading thread would wait for the pipe
