"""`python -m ops.bench latency`: one job when nothing else goes on, how full slots are kept, what idling costs.

Idle: one job at a time, from its submit to its result in the caller's hand, at the queue and through HTTP with
`Prefer: wait`. Full: 1,000 jobs of 50 ms on 10 slots, of which 200 a second are possible. Idling: eight workers and
two schedulers with nothing to do, all their processes and their Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import uvloop

from ops.bench import alone, figures, web
from ops.bench.crew import Crew, crew
from ops.bench.harness import find, settle
from ops.bench.report import Column, as_table, show
from ops.bench.servers import RedisServer, cpu_s, descendants

__all__ = ["add_arguments", "run", "show"]

SLOTS = 10
JOB_S = 0.05
TIMES: tuple[Column, ...] = (("p50", "p50 ms", 2), ("p90", "p90 ms", 2), ("p99", "p99 ms", 2), ("max", "max ms", 2))
FULL: tuple[Column, ...] = (("jobs_s", "jobs/s", 1), ("percent", "% of the possible", 1), ("n", "jobs", 0))
IDLE: tuple[Column, ...] = (
    ("count", "processes", 0),
    ("cpu_percent", "CPU % of a core", 3),
    ("commands_s", "commands/s", 1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `latency`."""
    parser.add_argument("--rounds", type=int, default=3, help="of everything but idling")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the 300 timed jobs")
    parser.add_argument("--jobs", type=int, default=1_000, help="jobs of 50 ms")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")
    parser.add_argument("--idle-workers", type=int, default=8)
    parser.add_argument("--idle-schedulers", type=int, default=2)
    parser.add_argument("--idle-s", type=float, default=20.0, help="how long it looks at them; 0: not at all")
    parser.add_argument(
        "--peers-dir", type=Path, default=Path("../shared/peers"), help="for the harness' own 50 ms test"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, tables and the figures of the last line."""
    rounds = [_round(options, number + 1) for number in range(options.rounds)]
    idle = _idle(options) if options.idle_s else {}
    medians = figures.medians(rounds)
    times = {name: row for name, row in medians.items() if "p50" in row}
    full = {name: row for name, row in medians.items() if "percent" in row}
    return {
        "rounds": rounds,
        "medians": medians,
        "idle": idle,
        "tables": [as_table(TIMES, times), as_table(FULL, full), *([as_table(IDLE, idle)] if idle else [])],
        "ratios": {**_ratios(rounds), **_idle_ratios(idle)},
        "errors": [],
    }


def _round(options: argparse.Namespace, number: int) -> dict[str, dict[str, Any]]:
    found = {
        "queue": alone.latency(options.aof, options.scale),
        "http": web.latency(options.aof, options.scale),
        "50 ms jobs": full_slots(options),
        "no queue: 10 loops that sleep": no_queue(options.jobs),
    }
    harness = find(options.peers_dir)
    if harness is not None:
        row = harness.utilization("ours", options.aof)
        found["50 ms jobs, the harness' way"] = {**row, "percent": 100 * row["used"]}
    told = (f"{name} {row.get('p50', row.get('jobs_s')):.2f}" for name, row in found.items())
    print(f"round {number}: " + ", ".join(told), flush=True)
    return found


def full_slots(options: argparse.Namespace) -> dict[str, Any]:
    """Jobs of 50 ms, all submitted first: the rate from the end of the first slotful to the end of the last job."""
    with crew(options.aof) as workers:
        return _rate(uvloop.run(_ends(workers, options.jobs)))


def no_queue(count: int) -> dict[str, Any]:
    """What the event loop leaves possible: as many loops as there are slots, each sleeping 50 ms again and again."""
    ends: list[float] = []

    async def slot() -> None:
        for _ in range(count // SLOTS):
            await asyncio.sleep(JOB_S)
            ends.append(time.time())

    async def slots() -> None:
        await asyncio.gather(*(slot() for _ in range(SLOTS)))

    uvloop.run(slots())
    return _rate(ends)


def _rate(times: list[float]) -> dict[str, Any]:
    ends = sorted(times)
    jobs_s = (len(ends) - SLOTS) / (ends[-1] - ends[SLOTS - 1])
    return {"n": len(ends), "jobs_s": jobs_s, "percent": 100 * jobs_s * JOB_S / SLOTS}


async def _ends(workers: Crew, count: int) -> list[float]:
    async with alone.connected(workers.server) as ours:
        ids = await ours.enqueue_many("sleep", range(count))
        workers.worker(SLOTS)
        workers.until(lambda: workers.completed() >= count, "not all jobs were done")
        return [(await ours.result(job_id))["t"] for job_id in ids]


def _idle(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    with crew(options.aof) as idle:
        workers = [idle.worker(100).process.pid for _ in range(options.idle_workers)]
        schedulers = [idle.scheduler().process.pid for _ in range(options.idle_schedulers)]
        settle([*workers, *schedulers])
        parts = {"workers": workers, "beats": [pid for one in workers for pid in descendants(one)]}
        parts |= {"schedulers": schedulers, "redis": [idle.server.p.pid]}
        return _cost(idle.server, parts, options.idle_s)


def _cost(server: RedisServer, parts: dict[str, list[int]], seconds: float) -> dict[str, dict[str, float]]:
    calls, before = sum(server.calls().values()), {name: sum(map(cpu_s, pids)) for name, pids in parts.items()}
    started = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - started
    after = {name: sum(map(cpu_s, pids)) for name, pids in parts.items()}
    calls = sum(server.calls().values()) - calls - 1  # the INFO before it
    rows = {
        name: {"count": len(pids), "cpu_percent": 100 * (after[name] - before[name]) / took}
        for name, pids in parts.items()
    }
    rows["redis"]["commands_s"] = calls / took
    return rows


def _ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    def median(row: str, field: str) -> float:
        return float(statistics.median(one[row][field] for one in rounds))

    return {
        "queue_p50_ms": median("queue", "p50"),
        "queue_p99_ms": median("queue", "p99"),
        "http_p50_ms": median("http", "p50"),
        "http_p99_ms": median("http", "p99"),
        "jobs_s_of_200": median("50 ms jobs", "jobs_s"),
        "no_queue_of_200": median("no queue: 10 loops that sleep", "jobs_s"),
    }


def _idle_ratios(idle: dict[str, dict[str, float]]) -> dict[str, float]:
    if not idle:
        return {}
    ours: float = sum(row["cpu_percent"] for name, row in idle.items() if name != "redis")
    redis = idle["redis"]
    return {
        "idle_cpu_percent": ours,
        "idle_redis_cpu_percent": redis["cpu_percent"],
        "idle_commands_s": redis["commands_s"],
    }
