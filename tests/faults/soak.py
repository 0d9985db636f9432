"""`python -m tests.faults.soak --minutes 30`: random faults under a steady load, and a ledger that counts.

Ends with 1 unless every acknowledged job has ended, once, with the result of the delivery that its record names,
and neither a process nor Redis has grown by more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from common.queue import Queue
from common.states import TERMINAL
from ops.bench import machine
from tests.faults.formation import WEB, WORK, Formation, Kept
from tests.faults.harm import Harm
from tests.faults.ledger import Ledger
from tests.faults.load import Load
from tests.faults.proxy import Proxy
from tests.faults.sizes import Growth, Sizes
from tests.redis_server import RedisServer

WORKERS = 4
REDIS = "redis"
LIMIT_PERCENT = 10.0
SAMPLE_S = 5.0
MIB = 2**20


class Soak:
    """The formation, its load, its faults, and what is known of them at the end."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.seconds = options.minutes * 60
        self.seed = options.seed
        self.rate = options.rate
        # Short, so that what is kept of ended jobs is level for most of the run.
        retention_s = min(60.0, self.seconds / 8)
        kept = {"retention_s": retention_s, "idempotency_s": 2 * retention_s, "events_kept": 1_000}
        self.redis = RedisServer(folder / "redis", aof=True)
        # Deaths are not bounded: here many workers die under one job by chance.
        self.formation = Formation(self.redis, folder, max_deaths=10_000, **kept)
        self.warm_s = min(240.0, 0.35 * self.seconds)
        self.sizes = Sizes()
        self.proxies: list[Proxy] = []

    async def run(self) -> dict[str, Any]:
        """Everything; returns what was found."""
        await asyncio.to_thread(self.redis.start)
        await self.formation.open()
        try:
            await self._start()
            await self._disturb()
            return await self._found()
        finally:
            await self.formation.close()
            for proxy in self.proxies:
                await proxy.stop()
            self.redis.stop()

    async def _start(self) -> None:
        formation = self.formation
        workers = [await self._behind_a_proxy(*WORK, name=f"work.{n}", slots=16) for n in range(WORKERS)]
        await self._behind_a_proxy("workers", "tests.faults.handlers.embedding", name="embedding")
        await self._behind_a_proxy(*WEB, name="web")
        await formation.scheduler(name="scheduler")
        async with formation.client() as client:
            await formation.web_answers(client)
        await formation.workers("work:test", WORKERS)
        await formation.workers("embedding:vectors", 1)
        self.queue = await Queue.connect(formation.settings.model_copy(update={"redis_url": self.proxies[-1].url}))
        self.load = Load(formation, self.queue, self.rate)
        self.harm = Harm(formation, workers, self.proxies, self.seed)

    async def _behind_a_proxy(self, *arguments: str, name: str, **variables: Any) -> Kept:
        proxy = Proxy(self.redis.port, self.seed + len(self.proxies))
        await proxy.start()
        self.proxies.append(proxy)
        return self.formation.start(*arguments, name=name, redis_url=proxy.url, **variables)

    async def _disturb(self) -> None:
        """Load and faults until the time is over; then no faults, and every job comes to its end."""
        self.began = time.monotonic()
        loading = asyncio.create_task(self.load.run(self.began + self.seconds))
        beside = [asyncio.create_task(work) for work in (self.harm.run(), self._watch(), self._say())]
        await asyncio.wait([asyncio.create_task(asyncio.sleep(self.seconds)), *beside], return_when="FIRST_COMPLETED")
        for task in beside:
            task.cancel()
        ended = await asyncio.gather(*beside, return_exceptions=True)
        failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        assert not failed, failed
        await loading
        await self.queue.close()

    async def _watch(self) -> None:
        while True:
            now = time.monotonic() - self.began
            self.sizes.look(self.formation.kept, now)
            if self.redis.running:
                await self._watch_redis(now)
            await asyncio.sleep(SAMPLE_S)

    async def _watch_redis(self, now: float) -> None:
        try:
            about = await self.formation.queue.redis.info("memory")
        except (OSError, RedisError):
            return  # it was killed meanwhile
        self.sizes.note(REDIS, about["used_memory"], now)

    async def _say(self) -> None:
        minute = 0
        while True:
            minute += 1
            await asyncio.sleep(max(0.0, self.began + 60 * minute - time.monotonic()))
            load, growths = self.load, self.growths()
            print(
                f"minute {minute}: accepted={len(load.jobs)} open={load.open} {_counts(load.wrong)}"
                f" redis={self.sizes.samples[REDIS, 0][-1][1] / MIB:.1f} MiB"
                f" grown={f'{growths[0].percent:+.1f}% {growths[0].name}' if growths else '-'}"
                f" faults={self.harm.done.total()}",
                flush=True,
            )

    def growths(self) -> list[Growth]:
        """Of every process that lived long enough, and of Redis."""
        return self.sizes.growths(self.warm_s, least_s=min(300.0, 0.3 * self.seconds))

    # -- what is found at the end

    async def _found(self) -> dict[str, Any]:
        load = self.load
        if load.open:
            load.wrong["lost"] += load.open
            load.notes.append(f"lost: {load.open} acknowledged jobs have not ended")
        await self._compare_counters()
        runs = compare_ledger(self.formation.ledger, load)
        growths = self.growths()
        redis = [one for one in growths if one.name == REDIS]
        processes = [one for one in growths if one.name != REDIS]
        return {
            "seconds": self.seconds,
            "seed": self.seed,
            "accepted": len(load.jobs),
            "runs": runs,
            "lost": load.wrong["lost"],
            "doubled": load.wrong["doubled"],
            "stale": load.wrong["stale"],
            "unexpected": load.wrong["unexpected"],
            "notes": load.notes,
            "faults": dict(self.harm.done),
            "replies_lost": sum(proxy.cuts for proxy in self.proxies),
            "exits": {kept.name: Counter(kept.exits) for kept in self.formation.kept},
            "rss_percent": max((one.percent for one in processes), default=0.0),
            "redis_percent": max((one.percent for one in redis), default=0.0),
            "grown": [one._asdict() | {"percent": one.percent} for one in growths],
            "watched": sorted({one.name for one in growths}),
        }

    async def _compare_counters(self) -> None:
        # Redis' own count of ends: a job that ended twice, or one that nobody submitted, would show here.
        ends, left = 0, 0
        for stats in await self.formation.results.queues():
            ends += sum(stats.counts.get(f"state:{state}", 0) for state in TERMINAL)
            left += stats.in_progress + sum(stats.depth.values())
        if more := abs(ends - len(self.load.jobs)):
            self.load.fault("doubled", f"{ends} ends of {len(self.load.jobs)} jobs", more)
        if left:
            self.load.fault("lost", f"{left} jobs are left waiting or in progress", left)


def compare_ledger(ledger: Ledger, load: Load) -> int:
    """Hold what is stored against what ran; returns the number of runs."""
    starts: Counter[tuple[str, int]] = Counter()
    ends: dict[tuple[str, int], int] = {}
    for line in ledger.lines():
        if line.what == "start":
            starts[line.job, line.claims] += 1
        elif line.what == "end":
            ends[line.job, line.claims] = line.pid
    for (job, claims), times in starts.items():
        if times > 1:
            load.fault("doubled", f"{job}: delivery {claims} was run {times} times")
    for job, (claims, pid) in load.ended.items():
        if (job, claims) not in ends or pid not in (None, ends[job, claims]):
            load.fault("stale", f"{job}: a result of delivery {claims} is stored, which did not come to its end")
    return len(starts)


def holds(found: dict[str, Any]) -> bool:
    """Whether everything that is promised was so."""
    wrong = found["lost"] + found["doubled"] + found["stale"] + found["unexpected"]
    level = max(found["rss_percent"], found["redis_percent"]) <= LIMIT_PERCENT
    everyone = {"web", "scheduler", "embedding", "work.0", REDIS} <= set(found["watched"])
    return not wrong and level and everyone and found["accepted"] > 0


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rate", type=float, default=60, help="jobs submitted a second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found here")
    options = parser.parse_args(argv)
    about = machine.describe()
    print(f"soak: {options.minutes:g} minutes, seed {options.seed}\n" + "\n".join(machine.lines(about)), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = asyncio.run(Soak(options, Path(folder)).run())
    found["machine"] = about
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if found["notes"]:
        print("\n".join(found["notes"][:20]))
    for one in found["grown"][:5]:
        print(f"{one['name']}: {one['before'] / MIB:.1f} -> {one['after'] / MIB:.1f} MiB in {one['seconds']:.0f} s")
    print(summary(found))
    return 0 if holds(found) else 1


def summary(found: dict[str, Any]) -> str:
    """The last line."""
    kills = found["faults"].get("kill_worker", 0) + found["faults"].get("kill_redis", 0)
    return (
        f"accepted={found['accepted']} runs={found['runs']} unexpected={found['unexpected']}"
        f" faults: {_counts(found['faults'])}\n"
        f"lost={found['lost']} doubled={found['doubled']} stale={found['stale']} rss={found['rss_percent']:+.1f}%"
        f" redis={found['redis_percent']:+.1f}% kills={kills} replies_lost={found['replies_lost']} seed={found['seed']}"
    )


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counts.items())) or "all well"


if __name__ == "__main__":
    sys.exit(main())
