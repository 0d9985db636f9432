"""`python -m ops.bench submit`: what accepting a job costs, beside a bare FastAPI route that makes one Redis call.

One web process at a time works, on a core of its own; 64 callers keep it busy from another. `ours` is `POST /v1/jobs`,
every check on; `bare` does not even look at its body, `bare-json` decodes it and answers with a record like ours.
Batches: `Queue.submit_many` from one process, and `POST /v1/jobs` with a list of 100.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from ops.bench import alone, figures
from ops.bench.callers import Load, press
from ops.bench.formation import write_catalogue
from ops.bench.peer import Ours
from ops.bench.report import Column, as_table, show
from ops.bench.servers import BenchFailed, Program, RedisServer, cpu_s, free_port, pin, until
from ops.bench.web import BODY, NOTHING
from ops.ready import read_json

__all__ = ["add_arguments", "run", "show"]

CALLERS = 64
LIST = 100
LIST_CALLERS = 4
CHUNK = 1_000
#: Calls of `submit_many` in flight at once: with more than one, Python and Redis overlap.
SUBMIT_MANY = {"submit_many": 1, "submit_many, 3 at once": 3}
WARM_S = 1.0
START_LIMIT_S = 60.0
SINGLE: tuple[Column, ...] = (
    ("requests_s", "requests/s", 0),
    ("web_us", "web CPU µs/request", 0),
    ("redis_us", "redis CPU µs/request", 0),
    ("p50", "p50 ms", 1),
    ("p99", "p99 ms", 1),
    ("web_percent", "web CPU %", 0),
    ("callers_percent", "callers' CPU %", 0),
)
BATCH: tuple[Column, ...] = (("jobs_s", "jobs/s", 0), ("redis_us", "redis CPU µs/job", 1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `submit`."""
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row in a round")
    parser.add_argument("--callers", type=int, default=CALLERS, help="requests in flight")
    parser.add_argument("--jobs", type=int, default=40_000, help="of the batched submits")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, tables, and the figures of the last line."""
    rounds: list[dict[str, dict[str, Any]]] = []
    errors: list[str] = []
    with (
        RedisServer(options.aof) as server,
        tempfile.TemporaryDirectory(prefix="jarvis-bench-") as folder,
        places(server, Path(folder)) as found,
    ):
        for number in range(options.rounds):
            rounds.append({})
            for place in [*found[number % 3 :], *found[: number % 3]]:
                rounds[-1][place.name] = _single(server, place, options)
            print(f"round {number + 1}: {_told(rounds[-1])}", flush=True)
            for name, at_once in SUBMIT_MANY.items():
                rounds[-1][name] = uvloop.run(_submit_many(server, options.jobs, at_once))
            rounds[-1] |= _lists(server, found[0], options, errors)
            server.client.flushall()
    medians = figures.medians(rounds)
    single = {name: row for name, row in medians.items() if "requests_s" in row}
    batched = {name: row for name, row in medians.items() if "jobs_s" in row}
    return {
        "rounds": rounds,
        "medians": medians,
        "tables": [as_table(SINGLE, single), as_table(BATCH, batched)],
        "ratios": ratios(rounds),
        "errors": list(dict.fromkeys(errors)),
    }


def ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, float | None]:
    """The figures of the last line: same-round ratios, and medians of the batches."""
    medians = figures.medians(rounds)
    found = {"submit_vs_bare": "bare", "submit_vs_bare_json": "bare-json"}
    beside = {name: figures.ratio(rounds, "ours", "requests_s", [other]) for name, other in found.items()}
    batches = {"submit_many_jobs_s": "submit_many", "submit_many_3_jobs_s": "submit_many, 3 at once"}
    batches |= {"submit_list_jobs_s": "lists of 100"}
    return {**beside, **{name: medians.get(row, {}).get("jobs_s") for name, row in batches.items()}}


@dataclass(frozen=True)
class Place:
    """A web process and what it is sent."""

    name: str
    program: Program
    port: int
    path: str

    @property
    def pid(self) -> int:
        """Its process."""
        return self.program.process.pid


@contextlib.contextmanager
def places(server: RedisServer, folder: Path) -> Iterator[list[Place]]:
    """Our web process and the bare one, on the first core; everything else leaves it to them."""
    ports = free_port(), free_port()
    environment = {
        "JARVIS_REDIS_URL": server.url,
        "JARVIS_CATALOGUE": str(write_catalogue(folder, NOTHING)),
        "JARVIS_DATA_DIR": str(folder / "data"),
        "JARVIS_PORT": str(ports[0]),
        "JARVIS_LOG_LEVEL": "warning",
    }
    producer = Program("producer", [sys.executable, "-m", "producer"], environment, folder)
    bare = Program("bare", [sys.executable, "-m", "ops.bench.bare", str(ports[1])], environment, folder)
    everywhere = os.sched_getaffinity(0)
    try:
        for program, port in zip((producer, bare), ports, strict=True):
            _wait_for(program, port)
        _share_out(everywhere, [producer.process.pid, bare.process.pid], [os.getpid(), server.p.pid])
        yield [
            Place("ours", producer, ports[0], "/v1/jobs"),
            Place("bare", bare, ports[1], "/raw"),
            Place("bare-json", bare, ports[1], "/json"),
        ]
    finally:
        os.sched_setaffinity(0, everywhere)
        producer.stop()
        bare.stop()


def _wait_for(program: Program, port: int) -> None:
    def answers() -> bool:
        program.check()
        return read_json(f"http://127.0.0.1:{port}/openapi.json") is not None

    until(answers, START_LIMIT_S, f"{program.name} does not answer")


def _share_out(cores: set[int], web: list[int], others: list[int]) -> None:
    first, *rest = sorted(cores)
    for pid in web:
        pin(pid, {first})
    for pid in others if rest else []:
        pin(pid, set(rest))


def _single(server: RedisServer, place: Place, options: argparse.Namespace) -> dict[str, Any]:
    body = json.dumps(BODY).encode()
    uvloop.run(press(place.port, place.path, body, options.callers, WARM_S))
    before = cpu_s(place.pid), cpu_s(server.p.pid)
    load = uvloop.run(press(place.port, place.path, body, options.callers, options.seconds))
    web, redis = cpu_s(place.pid) - before[0], cpu_s(server.p.pid) - before[1]
    times = figures.percentiles(load.times_ms)
    return {
        "requests_s": load.requests / load.seconds,
        "web_us": 1e6 * web / load.requests,
        "redis_us": 1e6 * redis / load.requests,
        "web_percent": 100 * web / load.seconds,
        "callers_percent": load.cpu_percent,
        "p50": times["p50"],
        "p99": times["p99"],
    }


async def _submit_many(server: RedisServer, count: int, at_once: int) -> dict[str, float]:
    async with alone.connected(server) as ours:
        await asyncio.gather(*(_chunk(ours, 0) for _ in range(at_once)))
        chunks = iter(range(CHUNK, CHUNK + count, CHUNK))
        used, started = cpu_s(server.p.pid), time.perf_counter()
        await asyncio.gather(*(_chunks(ours, chunks) for _ in range(at_once)))
        seconds = time.perf_counter() - started
        return {"jobs_s": count / seconds, "redis_us": 1e6 * (cpu_s(server.p.pid) - used) / count}


async def _chunks(ours: Ours, lows: Iterator[int]) -> None:
    for low in lows:
        await _chunk(ours, low)


async def _chunk(ours: Ours, low: int) -> None:
    await ours.enqueue_many(alone.NOOP, range(low, low + CHUNK))


def _lists(server: RedisServer, place: Place, options: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    body = json.dumps([BODY] * LIST).encode()
    try:
        used = cpu_s(server.p.pid)
        load: Load = uvloop.run(press(place.port, place.path, body, LIST_CALLERS, options.seconds / 2))
    except BenchFailed as error:
        errors.append(f"lists of {LIST}: {str(error).splitlines()[0]}")
        return {}
    jobs = load.requests * LIST
    return {f"lists of {LIST}": {"jobs_s": jobs / load.seconds, "redis_us": 1e6 * (cpu_s(server.p.pid) - used) / jobs}}


def _told(found: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {row['requests_s']:,.0f}/s ({row['web_us']:.0f} µs)" for name, row in found.items())
