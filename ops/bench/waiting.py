"""`python -m ops.bench waiting`: whether those who wait are told the truth, and how often they have to ask.

A mixed load over HTTP, with jobs of known lengths on two workers: six users, three lanes, sizes 1:20, one by one and in
bursts of 30. Each caller polls his job's record when its last answer told him to: half of them by `Retry-After`, in
whole seconds, half by `retry-after-ms`. The first `eta` that a job's caller is told is held against its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from ops.bench import figures
from ops.bench.client import Connection
from ops.bench.formation import write_catalogue
from ops.bench.report import Column, as_table, show
from ops.bench.servers import BenchFailed, Program, RedisServer, free_port, until
from ops.bench.timed import BASE_S, MODEL, PER_TOKEN_S
from ops.ready import read_json

__all__ = ["add_arguments", "run", "show"]

OVER = ("completed", "failed", "expired", "cancelled")
READY_LIMIT_S = 60.0
JOB_LIMIT_S = 170.0
LANES, LANE_SHARES = ("high", "normal", "low"), (2, 6, 2)
USERS = (0, 0, 0, 1, 1, 2, 3, 4, 5)
BURSTS = (1, 1, 1, 1, 1, 1, 1, 1, 4, 30)
SHORTEST, SIZES = 20, 20  # tokens, and how many times as many the largest job has
#: Asking this much after a job's end is soon enough: seconds, or a part of the time that it took.
LATE_S, LATE_PART = 1.0, 0.2
COLUMNS: tuple[Column, ...] = (
    ("jobs", "jobs", 0),
    ("covered", "done by the first p90, %", 1),
    ("at_submit", "told with the submit, %", 0),
    ("error", "median error of p50, %", 0),
    ("width", "median p90 / p50", 2),
    ("polls", "polls a job", 2),
    ("late_s", "asked late, mean s", 2),
    ("in_bound", "late at most 1 s or 20 %, %", 1),
    ("took_p50", "took p50 s", 2),
    ("took_p90", "took p90 s", 2),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `waiting`."""
    parser.add_argument("--jobs", type=int, default=2_000, help="that are measured")
    parser.add_argument("--warm", type=int, default=100, help="before them, from which run times are learnt")
    parser.add_argument("--busy", type=float, default=0.85, help="part of the slots that the load needs")
    parser.add_argument("--slots", type=int, default=4, help="of each of the two workers")
    parser.add_argument("--seed", type=int, default=1, help="of the load")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the table and the figures of the last line."""
    with running(options) as port:
        load = list(arrivals(options.warm + options.jobs, 2 * options.slots, options.busy, options.seed))
        seen = uvloop.run(_all(port, load))[options.warm :]
        counted = _metrics(port)
    ways = {"by Retry-After": seen[::2], "by retry-after-ms": seen[1::2]}
    lanes = {f"{lane} lane": [one for one in seen if one.lane == lane] for lane in LANES}
    rows = {name: _row(some) for name, some in {"all": seen, **ways, **lanes}.items() if some}
    ratios: dict[str, float | None] = {
        "p90_coverage": rows["all"]["covered"] / 100,
        "polls_a_job": rows["by Retry-After"]["polls"],
        "metric_coverage": counted,
    }
    return {"rounds": [rows], "medians": rows, "tables": [as_table(COLUMNS, rows)], "ratios": ratios, "errors": []}


@dataclass(frozen=True)
class Arrival:
    """One job and when it comes."""

    at_s: float
    user: str
    lane: str
    max_tokens: int


@dataclass
class Seen:
    """What the caller of one job saw."""

    lane: str
    submitted: float
    polls: int = 0
    told_at: float = 0.0
    eta: dict[str, float] | None = None
    with_submit: bool = False
    finished: float = 0.0
    noticed: float = 0.0


def arrivals(count: int, slots: int, busy: float, seed: int) -> Iterator[Arrival]:
    """A load that needs this part of the slots over time, and much more now and then."""
    chance = random.Random(seed)
    mean_s = BASE_S + PER_TOKEN_S * SHORTEST * (SIZES - 1) / math.log(SIZES)
    at_s, made = 0.0, 0
    while made < count:
        burst, user = chance.choice(BURSTS), f"user-{chance.choice(USERS)}"
        lane = chance.choices(LANES, LANE_SHARES)[0]
        for _ in range(min(burst, count - made)):
            made += 1
            yield Arrival(at_s, user, lane, round(SHORTEST * SIZES ** chance.random()))
        at_s += chance.expovariate(1) * burst * mean_s / slots / busy


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[int]:
    """A web process, a scheduler and two workers; yields the port."""
    with (
        RedisServer(options.aof) as server,
        tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder, port = Path(name), free_port()
        environment = {
            "BENCH_SLOTS": str(options.slots),
            "JARVIS_REDIS_URL": server.url,
            "JARVIS_CATALOGUE": str(write_catalogue(folder, MODEL)),
            "JARVIS_DATA_DIR": str(folder / "data"),
            "JARVIS_PORT": str(port),
            "JARVIS_LOG_LEVEL": "warning",
        }
        worker = ["workers", "ops.bench.timed.TimedWorker"]
        for number, what in enumerate((["producer"], ["scheduler"], worker, worker)):
            program = Program(f"{what[0]}-{number}", [sys.executable, "-m", *what], environment, folder)
            stack.callback(program.stop)
        until(lambda: _workers(port) == 2, READY_LIMIT_S, f"not ready after {READY_LIMIT_S:.0f} s")
        yield port


def _workers(port: int) -> int:
    ready = read_json(f"http://127.0.0.1:{port}/readyz")
    return int(ready["workers"].get(MODEL.queue, 0)) if ready else 0


async def _all(port: int, load: Sequence[Arrival]) -> list[Seen]:
    idle: deque[Connection] = deque()
    began = time.monotonic()
    async with asyncio.TaskGroup() as callers:
        made = [callers.create_task(_caller(port, idle, began, one, i % 2 == 1)) for i, one in enumerate(load)]
    for connection in idle:
        await connection.__aexit__()
    return [one.result() for one in made]


async def _caller(port: int, idle: deque[Connection], began: float, job: Arrival, by_ms: bool) -> Seen:
    """Submit a job when it is due, and ask for it when told to until it is over."""
    await asyncio.sleep(max(0.0, began + job.at_s - time.monotonic()))
    body = {
        "kind": MODEL.kind,
        "model": MODEL.alias,
        "input": {"prompt": "x"},
        "params": {"max_tokens": job.max_tokens},
        "user": job.user,
        "priority": job.lane,
    }
    seen = Seen(job.lane, time.time())
    record, pause_s = await _asked(port, idle, "POST", "/v1/jobs", body, by_ms)
    _note(seen, record)
    seen.with_submit = seen.eta is not None
    limit = time.time() + JOB_LIMIT_S
    while record["status"] not in OVER:
        if time.time() > limit:
            raise BenchFailed(f"{record['id']} is {record['status']} after {JOB_LIMIT_S:.0f} s")
        await asyncio.sleep(pause_s)
        record, pause_s = await _asked(port, idle, "GET", record["links"]["self"], None, by_ms)
        seen.polls += 1
        _note(seen, record)
    seen.finished, seen.noticed = record["finished_at"], time.time()
    return seen


async def _asked(
    port: int, idle: deque[Connection], method: str, path: str, body: Any, by_ms: bool
) -> tuple[dict[str, Any], float]:
    """What is answered, and after how many seconds to ask again."""
    connection = idle.popleft() if idle else await Connection(port).__aenter__()
    record = await connection.call(method, path, body)
    told = connection.headers
    idle.append(connection)
    if record["status"] in OVER:
        return record, 0
    return record, float(told["retry-after-ms"]) / 1000 if by_ms else float(told["retry-after"])


def _note(seen: Seen, record: dict[str, Any]) -> None:
    if seen.eta is None and record["eta"] is not None:
        seen.eta, seen.told_at = record["eta"], time.time()


def _row(some: Sequence[Seen]) -> dict[str, float]:
    told = [(one, one.eta, one.finished - one.told_at) for one in some if one.eta]
    late = [one.noticed - one.finished for one in some]
    took = [one.finished - one.submitted for one in some]
    bounds = [max(LATE_S, LATE_PART * length) for length in took]
    return {
        "jobs": len(some),
        "covered": 100 * sum(left <= eta["p90"] for _, eta, left in told) / len(some),  # none told: not covered
        "at_submit": 100 * sum(one.with_submit for one in some) / len(some),
        "error": 100 * statistics.median(abs(left - eta["p50"]) / max(0.001, left) for _, eta, left in told),
        "width": statistics.median(eta["p90"] / eta["p50"] for _, eta, _ in told),
        "polls": statistics.fmean(one.polls for one in some),
        "late_s": statistics.fmean(late),
        "in_bound": 100 * sum(by <= bound for by, bound in zip(late, bounds, strict=True)) / len(some),
        "took_p50": figures.percentile(took, 50),
        "took_p90": figures.percentile(took, 90),
    }


def _metrics(port: int) -> float | None:
    """The coverage that /metrics tells."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answered:
        lines = answered.read().decode().splitlines()
    found = {line.split("{")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("jarvis_eta")}
    judged = found.get("jarvis_eta_total", 0)
    return found.get("jarvis_eta_covered_total", 0) / judged if judged else None
