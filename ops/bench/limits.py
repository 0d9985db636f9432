"""`python -m ops.bench limits`: what API keys and their limits cost, and whether one over its limits is felt by others.

`queue` rows: jobs that do nothing are submitted, claimed and committed by one caller, without a key, with a key that
has no limits, and with one that has six (none of them reached), in turns on one Redis. `web` rows: `POST /v1/jobs` of
one web process, with a key without limits and with one that has three. `others`: four callers of one key make a call
every 40 ms, alone and while a key that is over its limit asks as often and is refused.
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
from ops.bench.servers import Program, RedisServer, cpu_s, free_port, until
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
OTHERS, PAUSE_S = 4, 0.04
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


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, tables, and the figures of the last line."""
    rounds: list[dict[str, dict[str, Any]]] = [{} for _ in range(options.rounds)]
    with RedisServer("everysec") as server:
        for number, one in enumerate(rounds):
            names = list(KINDS)
            for name in names[number % 3 :] + names[: number % 3]:
                one[f"queue, {name}"] = uvloop.run(_queue(server, KINDS[name], options.jobs))
    with RedisServer("everysec") as server, tempfile.TemporaryDirectory(prefix="jarvis-bench-") as folder:
        _web(server, Path(folder), rounds, options.seconds)
    medians = figures.medians(rounds)
    return {
        "rounds": rounds,
        "medians": medians,
        "tables": [as_table(COLUMNS, medians)],
        "ratios": {
            "queue_limits_vs_none": figures.ratio(rounds, "queue, a key with limits", "rate", ["queue, no key"]),
            "redis_cpu_vs_none": figures.ratio(rounds, "queue, a key with limits", "redis_us", ["queue, no key"]),
            "web_limits_vs_none": figures.ratio(rounds, "web, a key with limits", "rate", ["web, a key"]),
            "others_p99_beside_refused": figures.ratio(rounds, "others, beside it", "p99", ["others, alone"]),
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


def _web(server: RedisServer, folder: Path, rounds: list[dict[str, dict[str, Any]]], seconds: float) -> None:
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

    def pressed(key: str, callers: int, seconds: float, status: int = 202, pause_s: float = 0.0) -> Any:
        return press(
            port, "/v1/jobs", body, callers, seconds, f"authorization: Bearer {keys[key]}\r\n", status, pause_s
        )

    async def others(beside: bool) -> dict[str, Any]:
        calls = [pressed("free", OTHERS, 2 * seconds, pause_s=PAUSE_S)]
        if beside:
            calls.append(pressed("over", OTHERS, 2 * seconds, 429, PAUSE_S))
        return figures.percentiles((await asyncio.gather(*calls))[0].times_ms)

    try:
        until(lambda: read_json(f"http://127.0.0.1:{port}/openapi.json") is not None, START_LIMIT_S, "no web process")
        uvloop.run(pressed("over", 1, 0.1, 202, 10.0))  # its one request
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
            for beside in (False, True) if number % 2 else (True, False):
                one["others, beside it" if beside else "others, alone"] = uvloop.run(others(beside))
    finally:
        web.stop()


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
