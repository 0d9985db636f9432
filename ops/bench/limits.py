"""`python -m ops.bench limits`: what API keys and their limits cost, and whether one over its limits is felt by others.

`queue` rows: jobs that do nothing are submitted, claimed and committed by one caller, without a key, with a key that
has no limits, and with one that has six (none of them reached), in turns on one Redis. `web` rows: `POST /v1/jobs` of
one web process, with a key without limits and with one that has three. `others`: four callers of one key make a call
every 40 ms on the average: alone, with a rush in the middle of 200 requests at once of a key that is over its
limit (all are refused), and while that key asks as often as they do all the time. A kind's p99 is that of all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from common import scripts
from common.api_keys import ApiKeys, Asked
from common.jobs import ClaimedJob, JobResult, JobSpec
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome, Queue
from common.settings import load_settings
from ops.bench import figures
from ops.bench.callers import press
from ops.bench.formation import write_catalogue
from ops.bench.noop import QUEUE, payload
from ops.bench.peer import settings_for
from ops.bench.report import Column, as_table, show
from ops.bench.servers import BenchFailed, Program, RedisServer, cpu_s, free_port, until
from ops.bench.web import BODY, NOTHING
from ops.ready import read_json

__all__ = ["add_arguments", "run", "show"]

NAME = ":".join(QUEUE)
RESULT = JobResult({"ok": True}, {"prompt_tokens": 40, "completion_tokens": 20})
#: Never reached.
WIDE = ("requests=1M/1m", "requests=100M/1d", "tokens=1000M/1m", "tokens=100000M/1d", "cost=1M/1d", "waiting=1000000")
KINDS: dict[str, tuple[str, ...] | None] = {"no key": None, "a key": (), "a key with limits": WIDE}
CHUNK, CLAIM = 100, 33
CALLERS = 64
OTHERS, PAUSE_S, RUSH = 4, 0.04, 200
BESIDE = ("others, alone", "others, beside a rush", "others, beside as many refused")
START_LIMIT_S = 60.0
COLUMNS: tuple[Column, ...] = (
    ("rate", "jobs or requests/s", 0),
    ("redis_us", "redis CPU µs each", 1),
    ("web_us", "web CPU µs each", 0),
    ("p50", "p50 ms", 2),
    ("p99", "p99 ms", 2),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `limits`."""
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--jobs", type=int, default=6_000, help="through the queue, of each kind in a round")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row of the web process in a round")
    parser.add_argument("--others-seconds", type=float, default=20.0, help="of each row of `others` in a round")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, tables, and the figures of the last line."""
    rounds: list[dict[str, dict[str, Any]]] = [{} for _ in range(options.rounds)]
    with RedisServer("everysec") as server:
        for number, one in enumerate(rounds):
            names = list(KINDS)
            for name in names[number % 3 :] + names[: number % 3]:
                one[f"queue, {name}"] = uvloop.run(_queue(server, KINDS[name], options.jobs))
    with RedisServer("everysec") as server, tempfile.TemporaryDirectory(prefix="jarvis-bench-") as folder:
        p99 = _web(server, Path(folder), rounds, options.seconds, options.others_seconds)
    medians = figures.medians(rounds)
    return {
        "rounds": rounds,
        "medians": medians,
        "tables": [as_table(COLUMNS, medians)],
        "ratios": {
            "queue_limits_vs_none": figures.ratio(rounds, "queue, a key with limits", "rate", ["queue, no key"]),
            "redis_cpu_vs_none": figures.ratio(rounds, "queue, a key with limits", "redis_us", ["queue, no key"]),
            "web_limits_vs_none": figures.ratio(rounds, "web, a key with limits", "rate", ["web, a key"]),
            "others_p99_beside_a_rush": p99[BESIDE[1]] / p99[BESIDE[0]],
            "others_p99_beside_as_many": p99[BESIDE[2]] / p99[BESIDE[0]],
        },
        "errors": [],
    }


async def _queue(server: RedisServer, limits: tuple[str, ...] | None, jobs: int) -> dict[str, float]:
    queue = await Queue.connect(settings_for(server.port))
    try:
        await queue.redis.flushall()
        key = "" if limits is None else "bench"
        if key:
            await Policies(queue.redis, queue.settings).set_door(key, Policy.parse(limits or ()))
        spec = JobSpec(kind=QUEUE[0], model=QUEUE[1], input=payload(1), user="u", api_key=key, units=100, cost_micros=9)
        used, started = cpu_s(server.p.pid), time.perf_counter()
        for _ in range(0, jobs, CHUNK):
            await queue.submit_many([spec] * CHUNK)
        claimed: list[ClaimedJob] = []
        request = 0
        while True:
            request += 1
            outcomes = [Outcome.done(job, job.seq, RESULT) for job in claimed]
            _, claimed = await queue.commit_and_claim(NAME, "bench", outcomes, CLAIM, request)
            if not claimed:
                break
        seconds = time.perf_counter() - started
        return {"rate": jobs / seconds, "redis_us": 1e6 * (cpu_s(server.p.pid) - used) / jobs}
    finally:
        await queue.close()


def _web(
    server: RedisServer, folder: Path, rounds: list[dict[str, dict[str, Any]]], seconds: float, others_s: float
) -> dict[str, float]:
    """Fill in the rows of one web process; returns the p99 of the others, of all rounds together."""
    port = free_port()
    environment = {
        "JARVIS_REDIS_URL": server.url,
        "JARVIS_CATALOGUE": str(write_catalogue(folder, NOTHING)),
        "JARVIS_DATA_DIR": str(folder / "data"),
        "JARVIS_PORT": str(port),
        "JARVIS_LOG_LEVEL": "warning",
    }
    keys = asyncio.run(_keys(server.url, {"free": (), "limited": WIDE[:3], "over": ("requests=1/366d",)}))
    web = Program("producer", [sys.executable, "-m", "producer"], environment, folder)
    body = json.dumps(BODY).encode()

    def pressed(key: str, callers: int, seconds: float, status: int = 202, **more: Any) -> Any:
        return press(port, "/v1/jobs", body, callers, seconds, f"authorization: Bearer {keys[key]}\r\n", status, **more)

    async def rush() -> None:
        await asyncio.sleep(others_s / 2)
        load = await pressed("over", RUSH, others_s / 4, 429, once=True)
        if load.requests != RUSH:
            raise BenchFailed(f"{load.requests} of a rush of {RUSH} were answered")

    async def others(kind: str) -> list[float]:
        calls: list[Any] = [pressed("free", OTHERS, others_s, pause_s=PAUSE_S)]
        if kind == BESIDE[1]:
            calls.append(rush())
        elif kind == BESIDE[2]:
            calls.append(pressed("over", OTHERS, others_s, 429, pause_s=PAUSE_S))
        times: list[float] = (await asyncio.gather(*calls))[0].times_ms
        return times

    times: dict[str, list[float]] = {kind: [] for kind in BESIDE}
    try:
        until(lambda: read_json(f"http://127.0.0.1:{port}/openapi.json") is not None, START_LIMIT_S, "no web process")
        uvloop.run(pressed("over", 1, 0.5, once=True))  # its one request
        for number, one in enumerate(rounds):
            for key in ("free", "limited") if number % 2 else ("limited", "free"):
                before = cpu_s(web.process.pid), cpu_s(server.p.pid)
                load = uvloop.run(pressed(key, CALLERS, seconds))
                one["web, a key" if key == "free" else "web, a key with limits"] = {
                    "rate": load.requests / load.seconds,
                    "web_us": 1e6 * (cpu_s(web.process.pid) - before[0]) / load.requests,
                    "redis_us": 1e6 * (cpu_s(server.p.pid) - before[1]) / load.requests,
                    **figures.percentiles(load.times_ms),
                }
            for kind in BESIDE[number % 3 :] + BESIDE[: number % 3]:
                some = uvloop.run(others(kind))
                times[kind] += some
                one[kind] = figures.percentiles(some)
    finally:
        web.stop()
    return {kind: figures.percentiles(all_of_it)["p99"] for kind, all_of_it in times.items()}


async def _keys(url: str, limits: dict[str, tuple[str, ...]]) -> dict[str, str]:
    settings = load_settings(redis_url=url)
    client = scripts.connect(settings)
    keys: dict[str, str] = {}
    try:
        for name, texts in limits.items():
            made = await ApiKeys(client, settings).create(Asked(name=name, tier="custom", limits=texts), "bench")
            assert made
            keys[name] = made[1].text
    finally:
        await client.aclose()
    return keys
