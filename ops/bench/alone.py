"""Ours without a harness: the same figures, for when there are no peers to be beside."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from ops.bench.figures import percentile
from ops.bench.noop import QUEUE
from ops.bench.peer import OPEN_JOBS, WAIT_S, WORKER, Ours, worker_environment
from ops.bench.servers import Aof, Program, RedisServer, tree_cpu_s, until

BATCH = 100
SLOTS = 100
SINGLE = 3_000
MANY = 27_000
SINGLES_TIMED = 300
WARM = 5
NOOP = QUEUE[0]


def throughput(aof: Aof, scale: float) -> dict[str, Any]:
    """No-op jobs through one worker, all submitted first; every result is read back and looked at."""
    with RedisServer(aof) as server:
        return asyncio.run(_throughput(server, int(SINGLE * scale) or 1, int(MANY * scale)))


def latency(aof: Aof, scale: float) -> dict[str, Any]:
    """One job at a time through an idle worker: milliseconds from submit to the result in hand."""
    with RedisServer(aof) as server:
        return asyncio.run(_latency(server, max(20, int(SINGLES_TIMED * min(1, scale)))))


async def _throughput(server: RedisServer, single: int, many: int) -> dict[str, Any]:
    ours = await _connected(server)
    started = time.perf_counter()
    ids = [await ours.enqueue(NOOP, i) for i in range(single)]
    single_s, started = time.perf_counter() - started, time.perf_counter()
    for low in range(single, single + many, BATCH):
        ids += await ours.enqueue_many(NOOP, range(low, min(low + BATCH, single + many)))
    many_s = time.perf_counter() - started
    server.client.config_resetstat()
    ended, costs = await asyncio.to_thread(_work, server)
    results = [await ours.result(job_id) for job_id in ids]
    await ours.close()
    assert all(result["i"] == i for i, result in enumerate(results)), "a result is missing or another job's"
    n = single + many
    seconds = ended - min(result["t"] for result in results)
    rates = {"jobs_s": n / seconds, "enq_single": single / single_s, "enq_batch": many / many_s if many else None}
    return {"n": n, **rates, **{name: cost / n for name, cost in costs.items()}}


def _work(server: RedisServer) -> tuple[float, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        worker = Program("worker", WORKER, worker_environment(server.port, SLOTS), Path(folder))
        looks = 0

        def done() -> bool:
            nonlocal looks
            looks += 1
            worker.check()
            return server.client.zcard(OPEN_JOBS) == 0

        try:
            until(done, WAIT_S * 2, "not all jobs were done")
            ended, calls = time.time(), sum(server.calls().values()) - looks
            cpu = tree_cpu_s([worker.process.pid])
        finally:
            worker.stop()
    return ended, {"cmds": calls, "worker_cpu_1k_with_start": 1000 * cpu}


async def _latency(server: RedisServer, count: int) -> dict[str, Any]:
    ours = await _connected(server)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        worker = Program("worker", WORKER, worker_environment(server.port, SLOTS), Path(folder))
        try:
            for i in range(WARM + count):
                started = time.perf_counter()
                result = await ours.wait(await ours.enqueue(NOOP, i))
                times.append(1000 * (time.perf_counter() - started))
                assert result["i"] == i, "another job's result"
        finally:
            await asyncio.to_thread(worker.stop)
            await ours.close()
    return {"n": count, "p50": percentile(times[WARM:], 50), "p99": percentile(times[WARM:], 99)}


async def _connected(server: RedisServer) -> Ours:
    ours = Ours()
    ours.port = server.port
    await ours.connect()
    return ours
