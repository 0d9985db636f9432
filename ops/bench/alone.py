"""Ours without a harness: the same figures, for when there are no peers to be beside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from ops.bench.crew import Crew, crew
from ops.bench.figures import percentiles
from ops.bench.noop import QUEUE
from ops.bench.peer import WAIT_S, Ours
from ops.bench.servers import Aof, RedisServer, tree_cpu_s

BATCH = 100
SLOTS = 100
SINGLE = 3_000
MANY = 27_000
SINGLES_TIMED = 300
WARM = 5
NOOP = QUEUE[0]


def throughput(aof: Aof, scale: float) -> dict[str, Any]:
    """No-op jobs through one worker, all submitted first; every result is read back and looked at."""
    with crew(aof) as workers:
        return uvloop.run(_throughput(workers, int(SINGLE * scale) or 1, int(MANY * scale)))


def latency(aof: Aof, scale: float) -> dict[str, Any]:
    """One job at a time through an idle worker: milliseconds from submit to the result in hand."""
    with crew(aof) as workers:
        workers.worker(SLOTS)
        return uvloop.run(_latency(workers.server, max(20, int(SINGLES_TIMED * min(1, scale)))))


@asynccontextmanager
async def connected(server: RedisServer) -> AsyncIterator[Ours]:
    """A caller in this process."""
    ours = Ours()
    ours.port = server.port
    await ours.connect()
    try:
        yield ours
    finally:
        await ours.close()


async def _throughput(workers: Crew, single: int, many: int) -> dict[str, Any]:
    async with connected(workers.server) as ours:
        started = time.perf_counter()
        ids = [await ours.enqueue(NOOP, i) for i in range(single)]
        single_s, started = time.perf_counter() - started, time.perf_counter()
        for low in range(single, single + many, BATCH):
            ids += await ours.enqueue_many(NOOP, range(low, min(low + BATCH, single + many)))
        many_s = time.perf_counter() - started
        workers.server.client.config_resetstat()
        ended, costs = await asyncio.to_thread(_work, workers, single + many)
        results = [await ours.result(job_id) for job_id in ids]
    assert all(result["i"] == i for i, result in enumerate(results)), "a result is missing or another job's"
    n = single + many
    seconds = ended - min(result["t"] for result in results)
    rates = {"jobs_s": n / seconds, "enq_single": single / single_s, "enq_batch": many / many_s if many else None}
    return {"n": n, **rates, **{name: cost / n for name, cost in costs.items()}}


def _work(workers: Crew, count: int) -> tuple[float, dict[str, float]]:
    worker = workers.worker(SLOTS)
    looks = 0

    def done() -> bool:
        nonlocal looks
        looks += 1
        return workers.completed() >= count

    workers.until(done, "not all jobs were done")
    ended, calls = time.time(), sum(workers.server.calls().values()) - looks
    return ended, {"cmds": calls, "worker_cpu_1k_with_start": 1000 * tree_cpu_s([worker.process.pid])}


async def _latency(server: RedisServer, count: int) -> dict[str, Any]:
    times = []
    async with connected(server) as ours:
        for i in range(WARM + count):
            started = time.perf_counter()
            async with asyncio.timeout(WAIT_S):
                result = await ours.wait(await ours.enqueue(NOOP, i))
            times.append(1000 * (time.perf_counter() - started))
            assert result["i"] == i, "another job's result"
    return percentiles(times[WARM:])
