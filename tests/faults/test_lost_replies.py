"""Two of a hundred replies of Redis are lost, each with its connection, under load: claims, commits, renewals,
submits, blocking reads, whatever they answer. Nothing is lost, done twice or left behind by that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from common.errors import StoreUnavailable
from common.jobs import JobRecord, JobSpec, Step, parse_step
from common.queue import Queue
from common.states import TERMINAL, State
from tests.faults.callers import every_record, insist, read_to_the_end, usage_adds_up
from tests.faults.conftest import FULL
from tests.faults.formation import BOUND_S, WEB, WORK, Formation
from tests.faults.proxy import Proxy
from tests.producer.sse import Seen
from tests.waiting import until

SECONDS = 60 if FULL else 15
LOST = 0.02
TEXT = "t0 t1 t2 t3 t4 t5 "
LONG: dict[str, Any] = {"do": "sleep", "s": 600}  # cancelled
DEEDS: list[dict[str, Any]] = [
    {"do": "sleep", "s": 0.05},
    {"do": "sleep", "s": 0.3},
    {"do": "sleep", "s": 0.01},
    {"do": "tokens", "n": 6, "s": 0.03},  # read through the web process
    LONG,
]


@pytest.fixture
async def proxy(formation: Formation) -> AsyncIterator[Proxy]:
    """Stands between Redis and everyone but the witness."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    proxy = Proxy(formation.redis.port, seed)
    await proxy.start()
    yield proxy
    await proxy.stop()


class Load:
    """Submitters, a canceller and readers, all behind the proxy; each job carries a number."""

    def __init__(self, formation: Formation, proxy: Proxy) -> None:
        self.formation = formation
        self.proxied = formation.settings.model_copy(update={"redis_url": proxy.url})
        self.acknowledged: dict[str, str] = {}  # number -> id
        self.unsure = 0
        self.seen: dict[str, list[Seen]] = {}
        self.followers: list[asyncio.Task[None]] = []
        self._numbers = map(str, range(10**9))
        self.client = formation.client()

    async def run(self, seconds: float) -> None:
        """Submit for so long; cancellers and readers may take longer."""
        self._queue = await Queue.connect(self.proxied)
        self._ends = time.monotonic() + seconds
        await asyncio.gather(self._batches(), *(self._web() for _ in range(3)))

    async def rest(self) -> None:
        """Wait for those who cancel and those who read."""
        await asyncio.gather(*self.followers)
        await self._queue.close()
        await self.client.aclose()

    async def _batches(self) -> None:
        while time.monotonic() < self._ends:
            specs = {next(self._numbers): deed for deed in DEEDS}
            try:
                await self._submit([_spec(number, deed) for number, deed in specs.items()])
            except StoreUnavailable:  # both replies were lost: perhaps accepted, and nobody knows the ids
                self.unsure += len(specs)
            await asyncio.sleep(0.08)

    async def _submit(self, specs: list[JobSpec]) -> None:
        jobs = [one.id for one in await self._queue.submit_many(specs)]
        self.acknowledged |= {spec.metadata["n"]: job for spec, job in zip(specs, jobs, strict=True)}
        self.followers += [asyncio.create_task(self._read(jobs[3])), asyncio.create_task(self._cancel(jobs[4]))]

    async def _read(self, job: str) -> None:
        self.seen[job] = await read_to_the_end(self.client, job)

    async def _cancel(self, job: str) -> None:
        await asyncio.sleep(0.3)  # most run by then
        while True:
            with suppress(StoreUnavailable):
                return await self._queue.cancel(job)

    async def _web(self) -> None:
        while time.monotonic() < self._ends:
            number = next(self._numbers)
            body = {"kind": "embedding", "model": "vectors", "input": {"texts": ["a"]}, "metadata": {"n": number}}
            self.acknowledged[number] = await insist(self.client, f"job {number}", body)
            await asyncio.sleep(0.1)  # three of these ask for 30 jobs a second, of which 40 can be run


def _spec(number: str, deed: dict[str, Any]) -> JobSpec:
    metadata = {"n": number} | ({"long": "yes"} if deed is LONG else {})
    return JobSpec(kind="work", model="test", input=deed, metadata=metadata, user=f"user {int(number) % 7}")


class Witness:
    """Reads every state event of the shard from the start on, past the proxy."""

    def __init__(self, formation: Formation) -> None:
        self.steps: defaultdict[str, list[Step]] = defaultdict(list)
        self._redis = formation.queue.redis
        [prefix] = formation.queue.keys.prefixes()
        self._stream = f"{prefix}events"
        self._last: Any = "0"

    async def watch(self) -> None:
        """Read until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(0.05)

    async def look(self) -> None:
        """Read what has come."""
        for _, entries in await self._redis.xread({self._stream: self._last}):
            for entry, fields in entries:
                self._last = entry
                for job, step in fields.items():
                    self.steps[job.decode()].append(parse_step(step.decode()))


async def all_ended(formation: Formation) -> bool:
    """Whether every job is terminal; a long one whose submitter never learnt its id is cancelled here."""
    left = [record for record in await every_record(formation.results) if not record.terminal]
    for record in left:
        if "long" in record.metadata:
            await formation.queue.cancel(record.id)
    return not left


async def test_replies_lost_at_random_leave_no_job_behind_and_double_nothing(
    formation: Formation, proxy: Proxy
) -> None:
    for _ in range(2):
        formation.start(*WORK, slots=16, redis_url=proxy.url)
    formation.start("workers", "tests.faults.handlers.embedding", redis_url=proxy.url)
    await formation.scheduler(redis_url=proxy.url)
    formation.start(*WEB, redis_url=proxy.url)
    load, witness = Load(formation, proxy), Witness(formation)
    await formation.web_answers(load.client)
    await formation.workers("work:test", 2)
    await formation.workers("embedding:vectors", 1)
    watching = asyncio.create_task(witness.watch())
    proxy.lose = LOST
    await load.run(SECONDS)
    proxy.lose, healed_at = 0.0, time.time()
    await load.rest()
    await until(lambda: all_ended(formation), "all jobs are terminal", step_s=0.1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await witness.look()

    records = await every_record(formation.results)
    again = sum(record.claims > 1 for record in records)
    print(f"jobs={len(records)} unsure={load.unsure} cuts={proxy.cuts} of {proxy.replies} delivered_again={again}")
    assert proxy.cuts >= SECONDS * 4, "replies were lost"
    assert again <= SECONDS // 5, "a lost claim or renewal is sent again in time: its jobs do not wait for a rescue"
    _nothing_lost(load, records)
    await _nothing_left_behind(formation, records, healed_at)
    await _nothing_doubled(formation, records)
    await _every_event_once(formation, load, witness, records)
    await usage_adds_up(formation.results)
    assert [kept.exits for kept in formation.kept] == [[]] * 5, "nobody gave up"


def _nothing_lost(load: Load, records: list[JobRecord]) -> None:
    by_number = {record.metadata["n"]: record.id for record in records}
    assert len(by_number) == len(records), "one job a number"
    assert load.acknowledged.items() <= by_number.items()
    assert len(records) <= len(load.acknowledged) + load.unsure
    for record in records:
        assert record.status == (State.CANCELLED if "long" in record.metadata else State.COMPLETED), record


async def _nothing_left_behind(formation: Formation, records: list[JobRecord], healed_at: float) -> None:
    late = [record for record in records if (record.finished_at or 0) - healed_at > BOUND_S]
    assert not late, [(record.kind, record.history, record.finished_at) for record in late]
    await until(lambda: not _running(formation), "runs whose stop was lost hear from their beat that the lease is gone")


def _running(formation: Formation) -> set[tuple[str, int]]:
    over = {(line.job, line.claims) for what in ("end", "stopped") for line in formation.ledger.lines(what)}
    return {(line.job, line.claims) for line in formation.ledger.starts()} - over


async def _nothing_doubled(formation: Formation, records: list[JobRecord]) -> None:
    ends = Counter(record.status for record in records)
    queues = await formation.results.queues()
    for state in TERMINAL:
        assert sum(stats.counts.get(f"state:{state}", 0) for stats in queues) == ends[state]
    assert [(stats.in_progress, sum(stats.depth.values())) for stats in queues] == [(0, 0)] * 2
    deliveries = Counter((start.job, start.claims) for start in formation.ledger.starts())
    assert set(deliveries.values()) == {1}, "no delivery runs twice"
    claims = {record.id: record.claims for record in records}
    assert all(1 <= delivery <= claims[job] for job, delivery in deliveries)
    for record in records:
        stored = await formation.results.result(record.id)
        assert stored is not None
        assert (stored.output is not None) == (record.status == State.COMPLETED)


async def _every_event_once(formation: Formation, load: Load, witness: Witness, records: list[JobRecord]) -> None:
    for record in records:
        events = await formation.results.events(record.id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        # The first step is no news: nobody could follow a job that was not accepted yet.
        assert witness.steps[record.id] == record.history[1:], "each state's event once, and one that ends it"
        assert [state in TERMINAL for _, state, _ in record.history].count(True) == 1
    for seen in load.seen.values():
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert "".join(event.data["text"] for event in seen if event.event == "token") == TEXT
    assert len(load.seen) >= SECONDS * 3
