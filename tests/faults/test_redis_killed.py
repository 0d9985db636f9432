"""Redis killed, cut short, emptied or damaged under work. Acceptance tests 6 and 7."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import httpx

from common.states import State
from tests.faults.conftest import FULL
from tests.faults.formation import WEB, WORK, Formation
from tests.waiting import until

BODY: dict[str, Any] = {"kind": "embedding", "model": "vectors", "input": {"texts": ["one"]}}


class Caller:
    """Submits through the web process at a steady pace and notes every answer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.accepted: list[str] = []
        self.answers: list[tuple[float, int, float]] = []  # when asked, status, how long it took
        self.without_retry_after = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def one(self) -> None:
        asked = time.time()
        answer = await self.client.post("/v1/jobs", json=BODY)
        self.answers.append((asked, answer.status_code, time.time() - asked))
        if answer.status_code == 202:
            self.accepted.append(answer.json()["id"])
        elif "retry-after" not in answer.headers:
            self.without_retry_after += 1

    async def pace(self, per_s: float) -> None:
        while True:
            task = asyncio.create_task(self.one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(1 / per_s)

    async def rest(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_6_redis_killed_under_submits_loses_nothing_acknowledged(formation: Formation) -> None:
    per_s, down_s = (100, 5) if FULL else (25, 3)
    formation.start("workers", "embedding")
    await formation.scheduler()
    formation.start(*WEB)
    async with formation.client() as client:
        await formation.web_answers(client)
        await formation.workers("embedding:vectors", 1)
        caller = Caller(client)
        pacing = asyncio.create_task(caller.pace(per_s))
        await asyncio.sleep(2)
        await formation.kill_redis()
        down_at = time.time()
        await asyncio.sleep(down_s)
        up_at = time.time()
        await asyncio.to_thread(formation.redis.start)
        answers_at = time.time()
        await asyncio.sleep(1.5)
        pacing.cancel()
        await caller.rest()
        records = await formation.ends(caller.accepted)
    assert {record.status for record in records} == {State.COMPLETED}
    finished = [record.finished_at for record in records if record.finished_at and record.finished_at > up_at]
    assert min(finished) - answers_at <= 5
    statuses = {status for _, status, _ in caller.answers}
    assert statuses == {202, 503}
    assert caller.without_retry_after == 0
    while_down = [answer for answer in caller.answers if down_at + 0.1 < answer[0] < up_at - 1.1]
    assert {status for _, status, _ in while_down} == {503}
    took = sorted(took for _, _, took in while_down)
    assert took[int(len(took) * 0.9)] <= 1, took[-5:]
    assert [kept.exits for kept in formation.kept] == [[], [], []], "nobody gave up"


async def works_again(formation: Formation, within_s: float = 5) -> None:
    """New jobs run without a hand."""
    started = time.monotonic()
    jobs = await formation.submit(3)
    records = await formation.ends(jobs)
    assert {record.status for record in records} == {State.COMPLETED}
    assert time.monotonic() - started <= within_s


async def test_7_an_append_only_file_cut_short_costs_what_came_after_the_cut_and_no_more(formation: Formation) -> None:
    worker = formation.start(*WORK, slots=4)
    scheduler = await formation.scheduler()
    await formation.workers("work:test", 1)
    kept = await formation.submit(8, input={"s": 0.5})
    await until(lambda: len(formation.ledger.ends()) >= 2, "some have run")
    [file] = list(formation.redis.folder.glob("appendonlydir/*.incr.aof"))
    size = file.stat().st_size
    lost = await formation.submit(20, input={"s": 0.1})
    await until(lambda: len(formation.ledger.starts()) >= 8, "more have run")
    formation.redis.kill9()
    os.truncate(file, size)
    await asyncio.to_thread(formation.redis.start)
    await works_again(formation)
    for record in await formation.ends(kept):
        assert record.status == State.COMPLETED
    client = formation.start(*WEB)
    async with formation.client() as web:
        await formation.web_answers(web)
        assert {(await web.get(f"/v1/jobs/{job}")).status_code for job in lost} == {404}
    assert (worker.exits, scheduler.exits, client.exits) == ([], [], [])


async def test_7_an_emptied_redis_and_damaged_parts_of_it_need_no_hand(formation: Formation) -> None:
    worker = formation.start(*WORK, slots=2)
    scheduler = await formation.scheduler()
    await formation.workers("work:test", 1)
    redis = formation.queue.redis
    q = formation.queue.keys.queue("work:test")

    async def busy() -> list[str]:
        jobs = await formation.submit(6, input={"s": 0.5}, user="ann")
        await formation.started(jobs[1])
        return jobs

    jobs = await busy()
    await redis.flushall()
    await works_again(formation)
    async with asyncio.timeout(10):
        assert await _known(formation, jobs) == 0

    jobs = await busy()
    await redis.delete(f"{q}meta")  # how many wait in each lane, and how they take turns
    await works_again(formation)
    assert {record.status for record in await formation.ends(jobs)} == {State.COMPLETED}
    assert len(formation.ledger.starts(jobs[0])) == 1, "what was running is not run again"
    await until(lambda: _none_waits(formation), "the count of waiting jobs is right again")

    jobs = await busy()
    await redis.delete(formation.queue.keys.job(jobs[5]))
    await works_again(formation)
    assert {record.status for record in await formation.ends(jobs[:5])} == {State.COMPLETED}
    await until(lambda: _parked(formation), "the orphan is parked")
    assert (worker.exits, scheduler.exits) == ([], [])


async def _parked(formation: Formation) -> bool:
    return any("orphan" in parked.reason for parked in await formation.results.parked())


async def _none_waits(formation: Formation) -> bool:
    return all(set(stats.depth.values()) == {0} for stats in await formation.results.queues())


async def _known(formation: Formation, jobs: list[str]) -> int:
    prefix = formation.queue.keys.of_job(jobs[0])
    return int(await formation.queue.redis.exists(*[f"{prefix}job:{job}" for job in jobs]))


async def test_7_with_fsync_always_nothing_acknowledged_is_missing(tmp_path: Path, start_redis: Any) -> None:
    redis = start_redis(aof=True, config={"appendfsync": "always"})
    formation = Formation(redis, tmp_path)
    await formation.open()
    try:
        jobs: list[str] = []

        async def submitting() -> None:
            while True:
                jobs.extend(await formation.submit())

        task = asyncio.create_task(submitting())
        await until(lambda: len(jobs) >= 300, "300 are acknowledged")
        redis.kill9()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(redis.start)
        assert await _known(formation, jobs) == len(jobs)
    finally:
        await formation.close()
