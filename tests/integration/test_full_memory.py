"""Redis at its memory limit: nothing new is accepted, and what runs can still be finished."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common import scripts
from common.errors import StoreUnavailable
from common.queue import Key
from common.settings import Settings
from tests.conformance.world import World, spec
from tests.redis_server import RedisServer


@pytest.fixture
async def world(start_redis: Callable[..., RedisServer], tmp_path: Path) -> AsyncIterator[World]:
    """A queue on a server of its own, with six running jobs and two waiting ones, that then has no memory left."""
    made = Settings(redis_url=start_redis().url, data_dir=tmp_path, max_deaths=2)
    world = World(scripts.connect(made), made, "redis")
    await world.submit_many(8)
    yield world
    await world.queue.close()


async def fill(world: World) -> None:
    """Leave Redis no memory."""
    await world.redis.config_set("maxmemory", 1)


async def test_a_submit_is_refused_as_unavailable_and_leaves_nothing(world: World) -> None:
    await fill(world)
    before = await world.keys()
    with pytest.raises(StoreUnavailable):
        await world.queue.submit(spec(user="new"), Key("key", "print"))
    assert await world.keys() == before
    assert await world.depth() == 8


async def test_running_jobs_still_commit_and_keep_their_leases(world: World) -> None:
    jobs = await world.claim(6)
    await fill(world)
    assert await world.renew(*(job.lease for job in jobs)) == []
    assert await world.complete(*jobs[:2]) == ["stored", "stored"]
    assert await world.fail(jobs[2], retryable=False) == ["stored"]
    assert await world.release(jobs[3]) == ["stored"]
    assert await world.emit(jobs[4], "a") == []


async def test_waiting_jobs_are_still_worked_off(world: World) -> None:
    await fill(world)
    assert len(await world.run_all()) == 8


async def test_the_scheduler_still_moves_what_is_over_or_due(world: World) -> None:
    scheduled = [await world.submit(i, delay_s=100) for i in range(2)]
    jobs = await world.claim(6)
    await world.outlive(jobs[0].id)
    await world.redis.zadd(f"{world.prefix}due", {scheduled[0]: 1})
    await world.redis.zadd(f"{world.q}leases", {jobs[1].lease: 1})
    await world.redis.delete(world.job_key(jobs[2].id))
    await fill(world)
    assert (await world.queue.expire(world.prefix)).moved == 1
    assert (await world.queue.promote(world.prefix)).moved == 1
    assert (await world.queue.rescue(world.prefix)).moved == 1
    assert await world.queue.trim(world.prefix) == 1
    await world.queue.cancel(scheduled[1])
    await world.queue.leave("generation:demo", "worker-1")
    assert await world.state(scheduled[1]) == "cancelled"
