"""The worker while Redis restarts, forgets its scripts, hangs or is gone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from arq import cron

from tests.redis_server import RedisServer
from tests.waiting import until
from tests.worker.conftest import profile
from tests.worker.place import Gate, Place


@pytest.fixture
def own_redis(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis(aof=True)


@pytest.fixture
async def own_place(own_redis: RedisServer, tmp_path: Path, inline_beat: None) -> AsyncIterator[Place]:
    """A place on a Redis that may be killed."""
    place = Place(profile(own_redis.url, tmp_path))
    await place.open()
    yield place
    if not own_redis.running:
        await asyncio.to_thread(own_redis.start)
    await place.close()


async def test_forgotten_scripts_are_told_again_in_the_middle_of_work(place: Place) -> None:
    gate = Gate()
    gate.open.set()
    await place.worker(gate.function, max_jobs=10)
    jobs = []
    for _ in range(10):
        jobs += await place.submit_many(10)
        await place.queue.redis.script_flush()
    assert {record.status for record in await place.ends(jobs)} == {"completed"}
    assert sorted(gate.started) == sorted(jobs), "each ran once"


async def test_a_restart_of_redis_in_the_middle_loses_and_doubles_nothing(
    own_place: Place, own_redis: RedisServer
) -> None:
    async def work(ctx: dict[str, Any]) -> str:
        runs.append(ctx["job_id"])
        await asyncio.sleep(0.01)
        return "done"

    runs: list[str] = []
    worker = await own_place.worker(work, max_jobs=10)
    jobs = await own_place.submit_many(400)
    await until(lambda: len(runs) > 50, "it works")
    await asyncio.to_thread(own_redis.kill9)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_redis.start)
    assert {record.status for record in await own_place.ends(jobs)} == {"completed"}
    assert len(runs) == 400
    assert worker.jobs_complete == 400


async def test_an_idle_worker_takes_the_first_job_after_a_restart(own_place: Place, own_redis: RedisServer) -> None:
    gate = Gate()
    gate.open.set()
    await own_place.worker(gate.function)
    await asyncio.to_thread(own_redis.restart)
    started = time.monotonic()
    job = await own_place.submit()
    await own_place.end(job)
    assert time.monotonic() - started < 5


async def test_redis_away_for_longer_than_a_lease_stops_the_work(own_place: Place, own_redis: RedisServer) -> None:
    gate = Gate()
    worker = await own_place.worker(gate.function)
    own_place.schedule()
    job = await own_place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await asyncio.to_thread(own_redis.kill9)
    took = await until(lambda: gate.stopped == [job], "the work is stopped", deadline_s=10)
    lease_s = own_place.settings.lease_s
    assert lease_s * 0.5 < took < lease_s + 1
    gate.open.set()
    await asyncio.to_thread(own_redis.start)
    record = await own_place.end(job)
    assert (record.status, record.claims, record.attempts) == ("completed", 2, 0)
    assert worker.jobs_complete == 1


async def test_a_cron_tick_while_redis_is_away_is_made_up_for(own_place: Place, own_redis: RedisServer) -> None:
    ticks = 0

    async def tick(ctx: dict[str, Any]) -> None:
        nonlocal ticks
        ticks += 1

    await own_place.worker(cron_jobs=[cron(tick, second=set(range(60)), microsecond=0)])
    await until(lambda: ticks >= 1, "a tick")
    await asyncio.to_thread(own_redis.kill9)
    await asyncio.sleep(1.2)
    before = ticks
    await asyncio.to_thread(own_redis.start)
    await until(lambda: ticks > before, "ticks go on")
    assert not own_place.workers[0][1].done()


async def test_what_was_emitted_is_read_when_redis_is_back(own_place: Place, own_redis: RedisServer) -> None:
    asked = asyncio.Event()
    go = asyncio.Event()

    async def work(ctx: dict[str, Any], job: Any) -> list[Any]:
        asked.set()
        await go.wait()
        return list(await ctx["emitted"](job))

    await own_place.worker(work)
    job = await own_place.submit()
    await asked.wait()
    await asyncio.to_thread(own_redis.kill9)
    go.set()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_redis.start)
    record = await own_place.end(job)
    assert (record.status, record.attempts) == ("completed", 0)


async def test_a_worker_told_to_stop_while_redis_is_away_ends(own_place: Place, own_redis: RedisServer) -> None:
    gate = Gate()
    worker = await own_place.worker(gate.function, job_completion_wait=1)
    await own_place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await asyncio.to_thread(own_redis.kill9)
    worker.handle_sig(signal.SIGTERM)
    started = time.monotonic()
    await asyncio.wait_for(own_place.workers[0][1], 15)
    await worker.close()
    timeout_s = own_place.settings.redis_timeout_s
    assert time.monotonic() - started < 1 + 3 * timeout_s + 1


async def test_a_worker_told_to_stop_before_redis_ever_answered_ends(own_place: Place, own_redis: RedisServer) -> None:
    await asyncio.to_thread(own_redis.kill9)
    worker = await own_place.worker(Gate().function)
    assert not own_place.workers[0][1].done(), "it waits for Redis"
    worker.handle_sig(signal.SIGTERM)
    await asyncio.wait_for(own_place.workers[0][1], own_place.settings.redis_timeout_s + 2)


async def test_a_worker_started_before_redis_works_when_it_comes(own_place: Place, own_redis: RedisServer) -> None:
    await asyncio.to_thread(own_redis.kill9)
    gate = Gate()
    gate.open.set()
    await own_place.worker(gate.function)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_redis.start)
    job = await own_place.submit()
    assert (await own_place.end(job)).status == "completed"


async def test_a_redis_that_hangs_is_not_waited_for_longer_than_its_timeout(
    own_place: Place, own_redis: RedisServer
) -> None:
    gate = Gate()
    gate.open.set()
    await own_place.worker(gate.function)
    await own_place.end(await own_place.submit())
    own_redis.pause()
    await asyncio.sleep(own_place.settings.redis_timeout_s + 0.5)
    own_redis.resume()
    job = await own_place.submit()
    assert (await own_place.end(job)).status == "completed"
