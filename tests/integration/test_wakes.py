"""The shared blocking reader: it wakes the right followers, and a lost connection costs a read, never a wake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common import scripts
from common.settings import Settings
from common.wakes import Wakes
from tests.conformance.world import World
from tests.redis_server import RedisServer


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A queue on two shards."""
    made = Settings(redis_url=redis_url, data_dir=tmp_path, bell_timeout_s=1, shards=2)
    world = World(scripts.connect(made), made, "redis")
    yield world
    await world.results.close()
    await world.queue.close()


@pytest.fixture
async def wakes(world: World) -> AsyncIterator[Wakes]:
    """The readers under test."""
    wakes = Wakes(world.redis, world.queue.keys.prefixes(), 0.2)
    yield wakes
    await wakes.close()


async def woken(wake: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Wait for a wake and take it."""
    await asyncio.wait_for(wake.wait(), timeout_s)
    wake.clear()


async def test_a_move_wakes_the_followers_of_its_job_and_no_others(world: World, wakes: Wakes) -> None:
    one, other = await world.submit(1), await world.submit(2)
    async with wakes.listen(one) as first, wakes.listen(one) as second, wakes.listen(other) as third:
        for wake in (first, second, third):
            wake.clear()
        await world.queue.cancel(one)
        await woken(first)
        await woken(second)
        assert not third.is_set()


async def test_tokens_wake_their_followers(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    async with wakes.listen(job_id) as wake:
        wake.clear()
        await world.emit(job, "a")
        await woken(wake)


async def test_one_call_that_moves_many_jobs_wakes_all_of_them(world: World, wakes: Wakes) -> None:
    ids = await world.submit_many(3)
    async with wakes.listen(ids[0]) as first, wakes.listen(ids[2]) as last:
        first.clear()
        last.clear()
        await world.claim(3)
        await woken(first)
        await woken(last)


async def test_each_shard_has_one_reader(world: World, wakes: Wakes) -> None:
    ids = [await world.submit(i, model=f"m{i}") for i in range(6)]
    assert {job_id[4:6] for job_id in ids} == {"00", "01"}
    for job_id in ids:
        async with wakes.listen(job_id) as wake:
            wake.clear()
            await world.queue.cancel(job_id)
            await woken(wake)
    assert len(wakes._readers) == 2


async def test_nothing_is_missed_between_two_reads(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    async with wakes.listen(job_id) as wake:
        wake.clear()
        for i in range(100):
            await world.emit(job, "t", start=job.seq + i)
            await woken(wake)


async def test_closed_readers_start_again_when_somebody_listens(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    async with wakes.listen(job_id):
        pass
    await wakes.close()
    assert wakes._readers == []
    async with wakes.listen(job_id) as wake:
        wake.clear()
        await world.queue.cancel(job_id)
        await woken(wake)


async def test_a_cut_connection_wakes_everyone_to_look_for_themselves(
    world: World, wakes: Wakes, redis_server: RedisServer
) -> None:
    job_id = await world.submit()
    async with wakes.listen(job_id) as wake:
        wake.clear()
        with redis_server.client() as plain:
            plain.client_kill_filter(_type="normal", skipme=True)
        await woken(wake)


async def test_listening_while_redis_is_away_waits_only_a_moment(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_redis(aof=True)
    made = Settings(redis_url=server.url, data_dir=tmp_path, bell_timeout_s=0.5, redis_timeout_s=1)
    world = World(scripts.connect(made), made, "redis")
    job_id = await world.submit()
    server.kill9()
    wakes = Wakes(world.redis, world.queue.keys.prefixes(), 0.2)
    async with asyncio.timeout(5), wakes.listen(job_id) as wake:
        assert not wake.is_set()
        server.start()
        await woken(wake)
    await wakes.close()
    await world.queue.close()
