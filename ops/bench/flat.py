"""`python -m ops.bench flat`: whether a job costs the same whatever waits, and what memory it takes.

Several Redis servers, each with another number of jobs (or of users with jobs) waiting, take turns: so many jobs are
claimed and committed, and as many submitted anew. What counts is the ratio to the smallest in the same round. Memory is
what `used_memory` grew by, per job of 200 bytes input; and what is left of it after many jobs have run and their
retention has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from common.jobs import ClaimedJob, JobResult, JobSpec
from common.queue import Outcome, Queue
from common.results import Results
from ops.bench import figures
from ops.bench.noop import QUEUE, payload
from ops.bench.peer import settings_for
from ops.bench.report import Column, as_table, show
from ops.bench.servers import BenchFailed, RedisServer

__all__ = ["add_arguments", "run", "show"]

NAME = ":".join(QUEUE)
WORKER = "bench"
#: What a worker of 100 slots asks for at a time.
CLAIM = 33
STEPS = 12
CHUNK = 1_000
WAITING_OF_USERS = 20_000
MOST_WAITING = 1_000_000
RETENTION_S = 2.0
SETTLE_LIMIT_S = 120.0
COST: tuple[Column, ...] = (
    ("claim_us", "claim, Redis µs/job", 2),
    ("commit_us", "commit, Redis µs/job", 2),
    ("cpu_us", "both, all of Redis' CPU µs/job", 2),
    ("wall_us", "both, seen by the caller µs/job", 1),
    ("ratio", "ratio to the first", 3),
    ("bytes", "bytes a waiting job", 0),
)
MEMORY: tuple[Column, ...] = (("bytes", "used_memory", 0), ("percent", "% of the last but one", 1), ("keys", "keys", 0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flat`."""
    parser.add_argument("--waiting", default="1000,10000,100000,1000000", help="jobs waiting, of one user")
    parser.add_argument("--users", default="10,1000,10000", help=f"users with jobs, {WAITING_OF_USERS:,} jobs in all")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each")
    parser.add_argument("--through", type=int, default=100_000, help="jobs run through, for what is left; 0: none")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, tables and the figures of the last line."""
    waiting = uvloop.run(_costs([Level(f"{n:,} waiting", n, 1) for n in _numbers(options.waiting)], options.rounds))
    users = [Level(f"{n:,} users", WAITING_OF_USERS, n) for n in _numbers(options.users)]
    of_users = uvloop.run(_costs(users, options.rounds)) if users else Costs([], {})
    left = uvloop.run(_left(options.through)) if options.through else {}
    tables = [as_table(COST, waiting.rows), *([as_table(COST, of_users.rows)] if users else [])]
    return {
        "rounds": waiting.rounds,
        "user_rounds": of_users.rounds,
        "waiting": waiting.rows,
        "users": of_users.rows,
        "left": left,
        "tables": [*tables, *([as_table(MEMORY, left)] if left else [])],
        "ratios": _ratios(waiting.rows, of_users.rows, left),
        "errors": [],
    }


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _ratios(waiting: Rows, users: Rows, left: Rows) -> dict[str, float | None]:
    found: dict[str, float | None] = {"flat_waiting": _last(waiting, "ratio"), "flat_users": _last(users, "ratio")}
    found["bytes_per_job"] = _last(waiting, "bytes")
    found["memory_left_percent"] = _last(left, "percent")
    return found


def _last(rows: Rows, field: str) -> float | None:
    return list(rows.values())[-1].get(field) if rows else None


Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Level:
    """So many jobs waiting, of so many users."""

    name: str
    jobs: int
    users: int


@dataclass(frozen=True)
class Costs:
    """Every round, and the medians of each level."""

    rounds: list[Rows]
    rows: Rows


async def _costs(levels: Sequence[Level], count: int) -> Costs:
    rounds: list[Rows] = []
    async with contextlib.AsyncExitStack() as stack:
        places = [await stack.enter_async_context(backlog(level)) for level in levels]
        for number in range(count):
            start = number % len(places)
            rounds.append({place.level.name: await place.turn() for place in [*places[start:], *places[:start]]})
        print(f"{count} rounds of {', '.join(level.name for level in levels)}", flush=True)
    medians = figures.medians(rounds)
    first = levels[0].name
    for place in places:
        name = place.level.name
        medians[name]["bytes"] = place.bytes_per_job
        medians[name]["ratio"] = statistics.median(one[name]["cpu_us"] / one[first]["cpu_us"] for one in rounds)
    return Costs(rounds, {level.name: medians[level.name] for level in levels})


@contextlib.asynccontextmanager
async def backlog(level: Level, **settings: Any) -> AsyncIterator[Backlog]:
    """A Redis of its own with so many jobs waiting."""
    with RedisServer() as server:
        changed = {"max_depth": 10 * MOST_WAITING, **settings}  # what is measured is cost, not the bound
        queue = await Queue.connect(settings_for(server.port).model_copy(update=changed))
        try:
            place = Backlog(level, server, queue)
            await place.fill()
            yield place
        finally:
            await queue.close()


class Backlog:
    """One queue in one Redis; `turn` runs some of its jobs and puts as many back."""

    def __init__(self, level: Level, server: RedisServer, queue: Queue) -> None:
        self.level = level
        self.server = server
        self.queue = queue
        self.bytes_per_job = 0.0
        self._submitted = 0
        self._request = 0

    async def fill(self) -> None:
        """Submit the backlog, and let Redis come to rest."""
        await self.queue.prepare()
        await self.step(await self.submit(1))  # scripts and connections are there before memory is looked at
        before = self.memory()
        started = time.monotonic()
        await self.submit(self.level.jobs)
        await self.settle()
        self.bytes_per_job = (self.memory() - before) / self.level.jobs
        print(f"{self.level.name}: submitted in {time.monotonic() - started:.0f} s", flush=True)

    async def submit(self, count: int) -> int:
        """Submit so many jobs; users take turns."""
        for low in range(0, count, CHUNK):
            numbers = range(self._submitted, self._submitted + min(CHUNK, count - low))
            await self.queue.submit_many([self._spec(number) for number in numbers])
            self._submitted += len(numbers)
        return count

    def _spec(self, number: int) -> JobSpec:
        user = f"user-{number % self.level.users}"
        return JobSpec(kind=QUEUE[0], model=QUEUE[1], input=payload(number), user=user)

    async def turn(self) -> dict[str, float]:
        """Claim and commit, a claim's worth at a time; the first is not counted: caches are another's still."""
        await self.submit(CLAIM * (2 * STEPS + 1))
        await self.step(CLAIM)
        before, started = self._used(), time.perf_counter()
        for _ in range(STEPS):
            await self.step(CLAIM)
        took, used, jobs = time.perf_counter() - started, self._used() - before, CLAIM * STEPS
        claim, commit = await self._apart()
        return {"claim_us": claim, "commit_us": commit, "cpu_us": 1e6 * used / jobs, "wall_us": 1e6 * took / jobs}

    async def step(self, count: int) -> None:
        """Claim so many jobs and commit them."""
        await self._commit(await self._claim(count))

    async def _apart(self) -> tuple[float, float]:
        # Asking Redis what it used costs as much as a script: so these steps are not the ones that are timed.
        claims = commits = 0.0
        for _ in range(STEPS):
            before = self._scripts()
            jobs = await self._claim(CLAIM)
            between = self._scripts()
            await self._commit(jobs)
            claims, commits = claims + between - before, commits + self._scripts() - between
        return claims / (STEPS * CLAIM), commits / (STEPS * CLAIM)

    async def _claim(self, count: int) -> list[ClaimedJob]:
        self._request += 1
        jobs = await self.queue.claim(NAME, WORKER, count, self._request)
        if len(jobs) != count:
            raise BenchFailed(f"{self.level.name}: {len(jobs)} jobs claimed instead of {count}")
        return jobs

    async def _commit(self, jobs: list[ClaimedJob]) -> None:
        ends = [Outcome.done(job, job.seq, JobResult({"ok": True, "i": 0, "t": time.time()})) for job in jobs]
        answers = await self.queue.commit(NAME, ends)
        if set(answers) != {"stored"}:
            raise BenchFailed(f"{self.level.name}: commits answered {set(answers)}")

    def _scripts(self) -> float:
        stats: Any = self.server.client.info("commandstats")
        used: float = stats.get("cmdstat_evalsha", {"usec": 0})["usec"]
        return used

    def _used(self) -> float:
        # The main thread alone: another one syncs the append-only file.
        cpu: Any = self.server.client.info("cpu")
        names = ("used_cpu_sys_main_thread", "used_cpu_user_main_thread")
        return sum(float(cpu[name]) for name in names)

    def memory(self) -> int:
        """Bytes that Redis holds."""
        info: Any = self.server.client.info("memory")
        used: int = info["used_memory"]
        return used

    def keys(self) -> int:
        """Keys that it holds."""
        size: Any = self.server.client.dbsize()
        return int(size)

    async def settle(self) -> None:
        """Wait until Redis does nothing but wait: no rewrite of its file, nothing left to write."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while time.monotonic() < deadline:
            info: Any = self.server.client.info("persistence")
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                return
            await asyncio.sleep(0.2)
        raise BenchFailed("Redis did not come to rest")


async def _left(count: int) -> Rows:
    """Memory before and after many jobs; as many ran before, so that the capped streams have their size both times."""
    async with backlog(Level("left", 1, 1), retention_s=RETENTION_S) as place:
        looks = {"with one job waiting": (place.memory(), place.keys())}
        for name in (f"after {count:,} jobs and their retention", f"after {count:,} more"):
            await _through(place, count)
            looks[name] = (place.memory(), place.keys())
    before = list(looks.values())[-2][0]
    return {
        name: {"bytes": memory, "percent": 100 * memory / before, "keys": keys}
        for name, (memory, keys) in looks.items()
    }


async def _through(place: Backlog, count: int) -> None:
    for low in range(0, count, CHUNK):
        some = min(CHUNK, count - low)
        await place.submit(some)
        for start in range(0, some, CLAIM):
            await place.step(min(CLAIM, some - start))
    await _forgotten(place)


async def _forgotten(place: Backlog) -> None:
    # As the scheduler does; the records themselves are forgotten by Redis.
    results = Results(place.queue.redis, place.queue.settings)
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        await asyncio.sleep(RETENTION_S / 2)
        for prefix in place.queue.keys.prefixes():
            await place.queue.trim(prefix)
        page = await results.list_jobs(limit=2)
        if len(page.records) <= 1:
            break
        if time.monotonic() > deadline:
            raise BenchFailed("records outlive their retention")
    await asyncio.sleep(RETENTION_S)  # Redis deletes what has expired, and shrinks its tables, a little at a time
    await place.settle()
