"""What is full says so at once, keeps what it has, and is as it was when everything is over. Acceptance test 11.

What each script does without memory is in tests/integration/test_full_memory.py; here Redis fills up under real
processes at work.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from common.errors import StoreUnavailable
from common.jobs import JobSpec
from common.states import State
from tests.faults.callers import every_record
from tests.faults.conftest import FULL
from tests.faults.formation import WEB, WORK, Formation
from tests.redis_server import RedisServer, free_port
from tests.waiting import until

BODY: dict[str, Any] = {"kind": "embedding", "model": "vectors", "input": {"texts": ["one"]}}
CAP = 50
COUNT = 100_000 if FULL else 5_000


async def submit(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[httpx.Response, float]:
    """An answer and how long it took in seconds."""
    started = time.perf_counter()
    answer = await client.post("/v1/jobs", json=body)
    return answer, time.perf_counter() - started


async def test_11_a_full_queue_takes_no_job_more_than_its_bound_and_says_so_at_once(formation: Formation) -> None:
    ports = formation.port, free_port()
    for port in ports:
        formation.start(*WEB, max_depth=CAP, port=port)
    async with formation.client(ports[0]) as one, formation.client(ports[1]) as other:
        await formation.web_answers(one)
        await formation.web_answers(other)
        answers = await asyncio.gather(*(submit(client, BODY) for _ in range(CAP) for client in (one, other)))
        assert sorted(answer.status_code for answer, _ in answers) == [202] * CAP + [429] * CAP
        refusals = [await submit(one, BODY) for _ in range(20)]
        for refusal, _ in refusals:
            assert refusal.status_code == 429
            assert int(refusal.headers["retry-after"]) >= 1
        # The median: a busy machine may hold up any single answer.
        assert statistics.median(took for _, took in refusals) < 0.05
        formation.start("workers", "embedding", max_depth=CAP)
        await formation.ends([answer.json()["id"] for answer, _ in answers if answer.status_code == 202])
        assert (await submit(one, BODY))[0].status_code == 202


class Filler:
    """Submits until Redis has refused often enough."""

    def __init__(self, formation: Formation) -> None:
        self.formation = formation
        self.accepted: list[str] = []
        self.refusals = 0
        self.batches: dict[str, bool] = {}  # by number: whether it was accepted

    async def requests(self, client: httpx.AsyncClient) -> None:
        """Large jobs, one by one, through the web process."""
        while self.refusals < 20:
            answer, _ = await submit(client, BODY | {"input": {"texts": ["x" * 4000] * 10}})
            if answer.status_code == 202:
                self.accepted.append(answer.json()["id"])
            else:
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                self.refusals += 1

    async def lists(self) -> None:
        """Ten jobs in one call."""
        while self.refusals < 20:
            number = str(len(self.batches))
            spec = JobSpec(kind="work", model="test", input={"s": 0}, metadata={"batch": number})
            try:
                jobs = await self.formation.queue.submit_many([spec] * 10)
            except StoreUnavailable:
                self.batches[number] = False
            else:
                self.batches[number] = True
                self.accepted += [job.id for job in jobs]


async def test_11_a_redis_without_memory_refuses_new_jobs_and_finishes_what_it_has(formation: Formation) -> None:
    formation.start(*WORK, slots=2)
    await formation.scheduler()
    formation.start(*WEB)
    held = formation.folder / "held"
    held.touch()
    async with formation.client() as client:
        await formation.web_answers(client)
        await formation.workers("work:test", 1)
        running = await formation.submit(2, input={"do": "hold", "file": str(held)})
        for job in running:
            await formation.started(job)
        redis = formation.queue.redis
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 3_000_000)
        filler = Filler(formation)
        await asyncio.gather(filler.requests(client), filler.requests(client), filler.lists())
        assert len(filler.accepted) > 50
        assert set(filler.batches.values()) == {True, False}
        for job in running + filler.accepted:
            assert (await client.get(f"/v1/jobs/{job}")).status_code == 200
        held.unlink()
        ended = await formation.ends(running)
        formation.start("workers", "embedding")  # it starts, and works everything off, in a full Redis
        ended += await formation.ends(filler.accepted)
        assert {record.status for record in ended} == {State.COMPLETED}
        records = await every_record(formation.results)
        # What was refused left nothing, not even a part of a list: it is exactly what was acknowledged.
        assert {record.id for record in records} == {*running, *filler.accepted}
        await redis.config_set("maxmemory", 0)
        assert (await submit(client, BODY))[0].status_code == 202
    assert [kept.exits for kept in formation.kept] == [[]] * 4


async def test_11_after_many_jobs_and_their_retention_redis_is_as_it_was(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    formation = Formation(own_redis, tmp_path, retention_s=3, events_kept=1_000)
    await formation.open()
    try:
        formation.start(*WORK, slots=100)
        await formation.scheduler()
        await formation.workers("work:test", 1)
        await run_through(formation, 1_000)  # what is made once and kept: scripts, counters, the capped streams
        before = await used_memory(formation)
        await run_through(formation, COUNT)

        async def shrunk() -> bool:
            return await used_memory(formation) <= before * 1.1

        await until(shrunk, "the memory is back", step_s=0.2)
        counts = (await formation.results.queues())[0].counts
        assert counts["state:completed"] == 1_000 + COUNT
    finally:
        await formation.close()


async def run_through(formation: Formation, count: int) -> None:
    """Submit jobs and wait until they have run and their retention is over."""
    before = await completed(formation)
    for _ in range(0, count, 1_000):
        await formation.submit(1_000, input={"s": 0})

    async def all_done() -> bool:
        return await completed(formation) == before + count

    await until(all_done, f"{count} jobs are done", deadline_s=300, step_s=0.1)
    await until(lambda: forgotten(formation), "all are forgotten", step_s=0.1)


async def completed(formation: Formation) -> int:
    """Jobs that have completed so far."""
    queues = await formation.results.queues()
    return sum(stats.counts.get("state:completed", 0) for stats in queues)


async def forgotten(formation: Formation) -> bool:
    """Whether no stream has an entry but the two that are capped by length, and no job is listed."""
    redis = formation.queue.redis
    for key in [key async for key in redis.scan_iter(_type="stream")]:
        if not key.endswith((b":events", b":ticks")) and await redis.xlen(key):
            return False
    jobs = [key async for key in redis.scan_iter(match="*job:*")]
    return not jobs and not (await formation.results.list_jobs()).records


async def used_memory(formation: Formation) -> int:
    """Bytes that Redis uses."""
    return int((await formation.queue.redis.info("memory"))["used_memory"])
