"""A queue under test, with short words for what tests do to it and see in it.

Redis' own clock decides everything, so a test does not wait for a lease or a ttl: it makes the deadline old.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio as redis

from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult, JobSpec, encode
from common.queue import Event, Key, Outcome, Queue, Swept
from common.results import Results
from common.scripts import execute
from common.settings import Settings

QUEUE = "generation:demo"
NAMES = itertools.count(1)


def spec(number: int = 0, **fields: Any) -> JobSpec:
    """A small generation job; fields of JobSpec by name."""
    return JobSpec(**{"kind": "generation", "model": "demo", "input": {"prompt": f"number {number}"}} | fields)


async def eventually(true: Callable[[], Awaitable[Any]], deadline_s: float = 10.0, what: str = "the condition") -> Any:
    """Wait until a coroutine function returns something true, and return that."""
    end = time.monotonic() + deadline_s
    while True:
        found = await true()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true in {deadline_s} s")
        await asyncio.sleep(0.005)


class World:
    """One queue, its readers, and one worker's name and request numbers."""

    def __init__(self, client: redis.Redis, settings: Settings, kind: str) -> None:
        self.redis = client
        self.settings = settings
        self.kind = kind
        self.queue = Queue(client, settings)
        self.results = Results(client, settings)
        self.requests = itertools.count(1)

    @property
    def prefix(self) -> str:
        """Prefix of the shard of the test's queue."""
        return self.queue.keys.of_queue(QUEUE)

    @property
    def q(self) -> str:
        """Prefix of the test's queue."""
        return self.queue.keys.queue(QUEUE)

    # -- moves

    async def submit(self, number: int = 0, key: Key | None = None, **fields: Any) -> str:
        """Submit one job; returns its id."""
        return (await self.queue.submit(spec(number, **fields), key)).id

    async def submit_many(self, count: int, **fields: Any) -> list[str]:
        """Submit jobs numbered from 0; returns their ids."""
        return [one.id for one in await self.queue.submit_many([spec(i, **fields) for i in range(count)])]

    async def claim(self, count: int = 1, worker: str = "worker-1") -> list[ClaimedJob]:
        """Claim as a worker does, with the next request number."""
        return await self.queue.claim(QUEUE, worker, count, next(self.requests))

    async def claim_one(self, worker: str = "worker-1") -> ClaimedJob:
        """Claim one job, which must be there."""
        (job,) = await self.claim(1, worker)
        return job

    async def commit(self, *outcomes: Outcome) -> list[str]:
        """Commit outcomes."""
        return list(await self.queue.commit(QUEUE, outcomes))

    async def complete(self, *jobs: ClaimedJob, **output: Any) -> list[str]:
        """Commit jobs as completed."""
        result = JobResult(output or {"text": "an answer"}, {"total_tokens": 3})
        return await self.commit(*(Outcome.done(job, job.seq, result) for job in jobs))

    async def commit_incomplete(self, job: ClaimedJob) -> list[str]:
        """Commit a job as cut by the model's context."""
        return await self.commit(Outcome.done(job, job.seq, JobResult({"text": "cut"}, incomplete=True)))

    async def fail(self, job: ClaimedJob, *, retryable: bool, delay_s: float | None = 0.0) -> list[str]:
        """Commit a job as failed in a handled way."""
        error = JobFailed("engine_said_no", "it did not work", retryable, delay_s)
        return await self.commit(Outcome.failed(job, job.seq, error, self.settings))

    async def end(self, job: ClaimedJob, how: str) -> None:
        """End a run by one of these ways; poison where one death is enough."""
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "complete": lambda: self.complete(job),
            "incomplete": lambda: self.commit_incomplete(job),
            "fail": lambda: self.fail(job, retryable=False),
            "retry": lambda: self.fail(job, retryable=True, delay_s=100),
            "cancel": lambda: self.queue.cancel(job.id),
            "expire": lambda: self.expire(job.id),
            "poison": lambda: self.rescue(job),
        }
        await ways[how]()

    async def release(self, job: ClaimedJob, seq: int | None = None) -> list[str]:
        """Give a job back."""
        return await self.commit(Outcome.release(job, job.seq if seq is None else seq))

    async def emit(self, job: ClaimedJob, *texts: str, start: int | None = None) -> list[str]:
        """Append token events, numbered after the job's last known event."""
        first = (job.seq if start is None else start) + 1
        tokens = [Event(job, first + i, "token", {"text": text}) for i, text in enumerate(texts)]
        return (await self.queue.emit(QUEUE, tokens)).lost

    async def renew(self, *leases: str, worker: str = "worker-1") -> list[str]:
        """Beat as a worker does; returns the leases that are lost."""
        return await self.queue.renew(QUEUE, worker, encode({"id": worker}), leases)

    async def run_all(self, count: int = 100, worker: str = "worker-1") -> list[ClaimedJob]:
        """Claim and complete until nothing is left; returns the jobs in the order in which they started."""
        started: list[ClaimedJob] = []
        while jobs := await self.claim(count, worker):
            started += jobs
            await self.complete(*jobs)
        return started

    async def run_some(self, count: int) -> None:
        """Claim and complete so many jobs, one after the other."""
        for _ in range(count):
            await self.complete(await self.claim_one())

    # -- the scheduler's moves, after making deadlines old

    async def promote(self, *job_ids: str) -> Swept:
        """Make scheduled jobs due and promote them."""
        await self._age("due", job_ids)
        return await self.queue.promote(self.prefix)

    async def rescue(self, *jobs: ClaimedJob) -> Swept:
        """End jobs' leases and rescue them."""
        for job in jobs:
            await self.redis.zadd(f"{self.q}leases", {job.lease: 1}, xx=True)
        return await self.queue.rescue(self.prefix)

    async def expire(self, *job_ids: str) -> Swept:
        """End jobs' time to live and expire them."""
        await self.outlive(*job_ids)
        return await self.queue.expire(self.prefix)

    async def outlive(self, *job_ids: str) -> None:
        """End jobs' time to live without the scheduler having looked yet."""
        for job_id in job_ids:
            ticket = await execute(self.redis, "HGET", self.job_key(job_id), "ticket")
            if ticket:
                aged = b"1 " + ticket.partition(b" ")[2]
                await execute(self.redis, "HSET", self.job_key(job_id), "ticket", aged)
            await self.redis.zadd(f"{self.prefix}expiry", {job_id: 1})

    async def _age(self, name: str, job_ids: tuple[str, ...]) -> None:
        if job_ids:
            await self.redis.zadd(f"{self.prefix}{name}", dict.fromkeys(job_ids, 1), xx=True)

    # -- what there is

    def job_key(self, job_id: str) -> str:
        """The key of a job's record."""
        return self.queue.keys.job(job_id)

    def stream(self, user: str = "anonymous", lane: str = "normal") -> str:
        """The key of a user's stream."""
        return f"{self.q}{lane}:u:{user}"

    async def state(self, job_id: str) -> str:
        """A job's state."""
        return (await self.results.record(job_id, position=False)).status.value

    async def states(self, job_id: str) -> list[str]:
        """All states a job has had, in order."""
        record = await self.results.record(job_id, position=False)
        return [state.value for _, state, _ in record.history]

    async def keys(self) -> set[str]:
        """Every key in Redis, without the shard's prefix."""
        return {key.decode().removeprefix(self.prefix) for key in await self.redis.keys("*")}

    async def depth(self) -> int:
        """Waiting jobs, as the counters have it."""
        values = await execute(self.redis, "HMGET", f"{self.q}meta", "depth:high", "depth:normal", "depth:low")
        return sum(int(value or 0) for value in values)

    async def entries(self, user: str = "anonymous", lane: str = "normal") -> int:
        """Entries in a user's stream."""
        return int(await self.redis.xlen(self.stream(user, lane)))

    async def length(self, key: str) -> int:
        """Length of a list."""
        return int(await execute(self.redis, "LLEN", key))

    async def ttl_ms(self, key: str) -> int:
        """Time until a key goes by itself; -1 never, -2 it is gone."""
        return int(await self.redis.pttl(key))


MakeWorld = Callable[..., World]


def ended(job: ClaimedJob, gpu_ms: int = 0, units: int = 0) -> Outcome:
    """A run that completed, at this cost."""
    return Outcome(job, "completed", job.seq, b"{}", encode({"total_tokens": units}), gpu_ms=gpu_ms)


def users(jobs: list[ClaimedJob]) -> str:
    """The users' first letters, in order."""
    return "".join(job.user[0] for job in jobs)
