"""`python -m ops.bench fairness`: what owners get of real workers, and what it costs to see to that.

flood: one user has 100,000 jobs waiting, another submits one, 200 times: how many of the flood's start before it.
shares: ten users with weights 1 to 10 and endless work of sizes 1 to 100 on two queues: what each got of 2,000 jobs.
claim: what a claim costs Redis with 10 and with 10,000 users waiting.
cost: no-op jobs a second of many owners with weights, then also with bounds and limits, beside one user without any,
and beside the same jobs of the same keys in one line without limits.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter
from typing import Any, NamedTuple

import uvloop

from common.jobs import JobSpec
from common.limits import Policy
from common.policies import Policies
from common.queue import Queue
from common.results import Results
from ops.bench import figures
from ops.bench.crew import Crew, crew
from ops.bench.flat import Level, backlog
from ops.bench.noop import QUEUE, payload
from ops.bench.peer import settings_for
from ops.bench.report import Column, as_table, show
from ops.bench.servers import BenchFailed

__all__ = ["add_arguments", "run", "show"]

NAME = ":".join(QUEUE)
SLOTS = 8
KINDS = ("short:bench", "long:bench")
WEIGHTS = range(1, 11)
LARGEST_MS = 100
TIER = ("requests=1M/1h",)
BOUND = (*TIER, "in_progress=100")
ALL = (*BOUND, "tokens=100M/1h,wait")


class Callers(NamedTuple):
    """Who submits the no-op jobs: so many keys of as many owners, with weights of 1 to 10, and what bounds each."""

    keys: int
    owners: int
    limits: tuple[str, ...] = ()


OFF = "one user without any"
ONE_LINE = {keys: f"{keys} keys of one owner, no limits" for keys in (10, 100)}
ON = {
    "requests": ("10 owners, weights, requests", Callers(10, 10, TIER)),
    "in_progress": ("10 owners, also in_progress", Callers(10, 10, BOUND)),
    "wait": ("10 owners, also tokens,wait", Callers(10, 10, ALL)),
    "100_owners": ("100 owners, all that", Callers(100, 100, ALL)),
}
LEVELS = {
    OFF: Callers(0, 0),
    **{name: Callers(keys, 1) for keys, name in ONE_LINE.items()},
    **dict(ON.values()),
}
#: The same with jobs that last so long: 100 slots can do 10,000 of them a second.
SHORT_MS = 10
SHORT = {
    f"jobs of {SHORT_MS} ms: one user without any": Callers(0, 0),
    f"jobs of {SHORT_MS} ms: 100 owners, all that": Callers(100, 100, ALL),
}
CHUNK = 1_000
LIMIT_S = 300.0
FLOOD: tuple[Column, ...] = (
    ("tries", "jobs that came later", 0),
    ("p50", "started before it, p50", 0),
    ("p99", "p99", 0),
    ("most", "most", 0),
    ("busy_percent", "slots in use, % of the time", 1),
)
SHARE: tuple[Column, ...] = (
    ("weight", "weight", 0),
    ("got_percent", "got %", 2),
    ("due_percent", "due %", 2),
    ("off_percent", "off by %", 1),
)
CLAIM: tuple[Column, ...] = (("claim_us", "claim, Redis µs/job", 2), ("commit_us", "commit, Redis µs/job", 2))
COST: tuple[Column, ...] = (("jobs_s", "jobs/s", 0),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fairness`."""
    parser.add_argument("--flood", type=int, default=100_000, help="jobs of the one who floods")
    parser.add_argument("--tries", type=int, default=200, help="jobs of those who come later")
    parser.add_argument("--jobs", type=int, default=2_000, help="jobs that are shared out, of each of two kinds")
    parser.add_argument("--users", type=int, default=10_000, help="users waiting when a claim is measured")
    parser.add_argument("--noop", type=int, default=20_000, help="no-op jobs of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the last two")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns tables and ratios."""
    tables: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    with crew() as workers:
        found = uvloop.run(_flood(workers, options.flood, options.tries))
    tables.append(as_table(FLOOD, {f"{options.flood:,} jobs of one user, {SLOTS} slots": found}, "flood"))
    ratios |= {"flood_p99_of_slots": found["p99"] / SLOTS, "flood_busy": found["busy_percent"] / 100}
    with crew() as workers:
        shares = uvloop.run(_shares(workers, options.jobs))
    tables.append(as_table(SHARE, shares, f"shares of {options.jobs:,} jobs a queue"))
    ratios["share_off_percent"] = max(row["off_percent"] for row in shares.values())
    claims, ratios["claim_users"] = uvloop.run(_claims(options.users, options.rounds))
    tables.append(as_table(CLAIM, claims, "claims"))
    costs, more = _costs(options.noop, options.rounds)
    ratios |= more
    tables.append(as_table(COST, costs, "cost"))
    return {"tables": tables, "ratios": ratios, "errors": []}


# -- one who floods, one who comes later


async def _flood(workers: Crew, flood: int, tries: int) -> dict[str, float]:
    queue = await _connected(workers)
    results = Results(queue.redis, queue.settings)
    spec = _specs("sleep", "flood")
    for low in range(0, flood, CHUNK):
        await queue.submit_many([spec(i) for i in range(low, min(low + CHUNK, flood))])
    workers.worker(SLOTS)
    await _until(lambda: _starts(workers) >= 4 * SLOTS, "the flood did not begin")
    marks: dict[int, float] = {}
    held: list[int] = []
    looking = asyncio.create_task(_look(queue, held))
    for n in range(tries):
        at = time.time()
        made = await queue.submit(_specs("sleep", f"late-{n % 20}")(flood + n))
        marks[flood + n] = at
        await results.wait(made.id, LIMIT_S)
    looking.cancel()
    passed = _passed(workers, marks, flood)
    await results.close()
    await queue.close()
    if len(passed) != tries:
        raise BenchFailed(f"{len(passed)} of {tries} jobs that came later started")
    return {
        "tries": tries,
        "p50": figures.percentile(passed, 50),
        "p99": figures.percentile(passed, 99),
        "most": max(passed),
        "busy_percent": 100 * statistics.mean(held) / SLOTS,
    }


async def _look(queue: Queue, held: list[int]) -> None:
    """Note every few milliseconds how many jobs are leased."""
    while True:
        held.append(await queue.redis.zcard(f"{queue.keys.queue(NAME)}leases"))
        await asyncio.sleep(0.004)


def _starts(workers: Crew) -> int:
    return workers.journal.read_text().count("\n") if workers.journal.exists() else 0


def _passed(workers: Crew, marks: dict[int, float], flood: int) -> list[float]:
    """For each job that came later, how many of the flood's started after it was sent and before it started."""
    lines = [line.split() for line in workers.journal.read_text().splitlines()]
    starts = sorted(float(at) for number, _, at in lines if int(number) < flood)
    own = {int(number): float(at) for number, _, at in lines}
    return [float(sum(sent < at < own[n] for at in starts)) for n, sent in marks.items() if n in own]


# -- weights


async def _shares(workers: Crew, jobs: int) -> dict[str, dict[str, float]]:
    queue = await _connected(workers)
    policies = Policies(queue.redis, queue.settings)
    for weight in WEIGHTS:
        await policies.set_share(f"user-{weight}", Policy.parse([f"weight={weight}"]))
    chance = random.Random(1)
    sizes: dict[str, tuple[str, int, int]] = {}
    for kind, name in ((name.partition(":")[0], name) for name in KINDS):
        for weight in WEIGHTS:
            # Enough that nobody runs out: twice what is due to him.
            specs = [
                JobSpec(kind=kind, model="bench", function="nap", user=f"user-{weight}", input={"ms": ms}, units=ms)
                for ms in (chance.randint(1, LARGEST_MS) for _ in range(jobs * weight * 2 // sum(WEIGHTS) + 50))
            ]
            for spec, made in zip(specs, await queue.submit_many(specs), strict=True):
                sizes[made.id] = name, weight, int(spec.input["ms"])
    for name in KINDS:
        workers.worker(SLOTS, BENCH_QUEUE=name)
    done = [f"{queue.keys.queue(name)}counts" for name in KINDS]

    async def enough() -> bool:
        counts = [await queue.redis.hget(key, "state:completed") for key in done]  # type: ignore[misc]
        return all(int(count or 0) >= jobs for count in counts)

    while not await enough():  # noqa: ASYNC110 - other processes complete them
        await asyncio.sleep(0.02)
    got = await _got(queue, sizes, jobs)
    await queue.close()
    return got


async def _got(queue: Queue, sizes: dict[str, tuple[str, int, int]], jobs: int) -> dict[str, dict[str, float]]:
    """What each user's jobs among the first so many starts of each queue took."""
    results = Results(queue.redis, queue.settings)
    ids = list(sizes)
    records = [one for low in range(0, len(ids), 500) for one in await results.records(ids[low : low + 500])]
    spent: Counter[int] = Counter()
    for name in KINDS:
        started = sorted((one.started_at, one.id) for one in records if one.started_at and sizes[one.id][0] == name)
        for _, job_id in started[:jobs]:
            spent[sizes[job_id][1]] += sizes[job_id][2]
    total, weights = sum(spent.values()), sum(WEIGHTS)
    return {
        f"user-{weight}": {
            "weight": weight,
            "got_percent": 100 * spent[weight] / total,
            "due_percent": 100 * weight / weights,
            "off_percent": 100 * abs(spent[weight] / total * weights / weight - 1),
        }
        for weight in WEIGHTS
    }


# -- claims


async def _claims(users: int, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    jobs = 2 * users
    async with backlog(Level("10 users", jobs, 10)) as few, backlog(Level(f"{users:,} users", jobs, users)) as many:
        found = [{place.level.name: await place.turn() for place in (few, many)} for _ in range(4 * rounds)]
    ratio = statistics.median(one[many.level.name]["claim_us"] / one["10 users"]["claim_us"] for one in found)
    return figures.medians(found), ratio


# -- what it costs


def _costs(count: int, rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, float | None]]:
    found, kinds = [], [(name, callers, 0) for name, callers in LEVELS.items()]
    kinds += [(name, callers, SHORT_MS) for name, callers in SHORT.items()]
    for number in range(rounds):
        row: dict[str, dict[str, float]] = {}
        for name, callers, ms in kinds if number % 2 else kinds[::-1]:
            with crew() as workers:
                row[name] = {"jobs_s": uvloop.run(_throughput(workers, count, callers, ms))}
        print(f"round {number + 1}: " + ", ".join(f"{name} {one['jobs_s']:.0f}/s" for name, one in row.items()))
        found.append(row)
    short_off, short_on = SHORT
    ratios = {f"noop_{called}": figures.ratio(found, name, "jobs_s", [OFF]) for called, (name, _) in ON.items()}
    for called, (name, callers) in ON.items():
        ratios[f"noop_{called}_beside_keys"] = figures.ratio(found, name, "jobs_s", [ONE_LINE[callers.keys]])
    ratios[f"{SHORT_MS}ms_100_owners"] = figures.ratio(found, short_on, "jobs_s", [short_off])
    medians = figures.medians(found)
    return {name: medians[name] for name, *_ in kinds}, ratios


async def _throughput(workers: Crew, count: int, callers: Callers, ms: int = 0) -> float:
    queue = await _connected(workers)
    policies = Policies(queue.redis, queue.settings)
    if callers.limits:
        for n in range(callers.owners):
            policy = Policy.parse([*callers.limits, f"weight={1 + n % 10}"])
            await policies.set_share(f"owner-{n}", policy)
            await policies.set_door(f"key{n}", policy)
    for low in range(0, count, CHUNK):
        await queue.submit_many([_costing(i, callers, ms) for i in range(low, low + CHUNK)])
    workers.worker(100)
    await _until(lambda: workers.completed() >= count // 10, "nothing was done")
    began, first = time.perf_counter(), workers.completed()
    await _until(lambda: workers.completed() >= count * 9 // 10, "not all was done")
    rate = (workers.completed() - first) / (time.perf_counter() - began)
    await queue.close()
    return rate


def _costing(i: int, callers: Callers, ms: int) -> JobSpec:
    whose: dict[str, Any] = {}
    if callers.keys:
        key = i % callers.keys
        whose = {"user": f"owner-{key % callers.owners}", "api_key": f"key{key}", "units": 100}
    what: dict[str, Any] = {"function": "nap", "input": {"ms": ms}} if ms else {"input": payload(i)}
    return JobSpec(kind=QUEUE[0], model=QUEUE[1], **what, **whose)


def _specs(function: str, user: str) -> Any:
    name = "" if function == QUEUE[0] else function
    return lambda i: JobSpec(kind=QUEUE[0], model=QUEUE[1], input=payload(i), user=user, function=name)


async def _connected(workers: Crew) -> Queue:
    queue = await Queue.connect(settings_for(workers.server.port))
    await queue.prepare()
    return queue


async def _until(done: Any, otherwise: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        if time.monotonic() > deadline:
            raise BenchFailed(otherwise)
        await asyncio.sleep(0.01)
