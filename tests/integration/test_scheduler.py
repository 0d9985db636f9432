"""The scheduler on a real Redis: when things happen, and that they happen once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from common import scripts
from common.errors import StoreUnavailable
from common.queue import Queue, Swept
from common.settings import Settings
from common.states import State
from scheduler import __main__ as program
from scheduler.scheduler import Scheduler, _sleep_s
from tests.conformance.world import World, eventually
from tests.redis_server import RedisServer

MakeWorld = Callable[..., World]


@pytest.fixture
async def make_world(redis_url: str, tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Make a queue with settings by name."""
    worlds: list[World] = []

    def make(**values: object) -> World:
        made = Settings(**{"redis_url": redis_url, "data_dir": tmp_path} | values)  # type: ignore[arg-type]
        worlds.append(World(scripts.connect(made), made, "redis"))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.results.close()
        await world.queue.close()


@asynccontextmanager
async def scheduling(world: World, count: int = 1) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Schedulers at work, each with a client of its own."""
    queues = [await Queue.connect(world.settings) for _ in range(count)]
    tasks = [asyncio.create_task(Scheduler(queue).run()) for queue in queues]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queue in queues:
            await queue.close()


async def reaches(world: World, job_id: str, state: State, deadline_s: float = 15.0) -> float:
    """Wait until a job is in a state; returns since when it is."""

    async def look() -> bool:
        return (await world.results.record(job_id, position=False)).status == state

    await eventually(look, deadline_s, f"{job_id} being {state}")
    record = await world.results.record(job_id, position=False)
    return record.history[-1][2]


async def test_a_due_job_is_queued_at_its_time_not_early_and_less_than_a_second_late(make_world: MakeWorld) -> None:
    world = make_world()
    async with scheduling(world):
        due = time.time() + 1.5
        job_id = await world.submit(run_at=due)
        at = await reaches(world, job_id, State.QUEUED)
        assert due - 0.002 <= at < due + 1.0


async def test_a_sleeping_scheduler_is_woken_for_a_job_that_is_due_before_what_it_knows(make_world: MakeWorld) -> None:
    world = make_world(bell_timeout_s=4.9)
    await world.submit(delay_s=3600)
    async with scheduling(world):
        await eventually(lambda: blocked(world))
        job_id = await world.submit(delay_s=0.3)
        record = await world.results.record(job_id)
        assert record.run_at is not None
        assert await reaches(world, job_id, State.QUEUED) < record.run_at + 1.0


async def blocked(world: World) -> bool:
    """Whether a client waits in Redis."""
    try:
        return int((await world.redis.info("clients"))["blocked_clients"]) > 0
    except RedisError:
        return False


async def test_many_jobs_due_at_once_are_all_queued_once_by_two_schedulers(make_world: MakeWorld) -> None:
    world = make_world()
    ids = await world.submit_many(500, run_at=time.time() + 1)
    async with scheduling(world, 2):
        await eventually(lambda: depth_is(world, 500))
    for job_id in ids[::50]:
        assert await world.states(job_id) == ["scheduled", "queued"]
    assert len(await world.run_all()) == 500


async def depth_is(world: World, count: int) -> bool:
    """Whether so many jobs wait."""
    return await world.depth() == count


async def test_a_job_of_a_silent_worker_is_queued_again_when_its_lease_ends(make_world: MakeWorld) -> None:
    world = make_world(lease_s=1.5)
    async with scheduling(world):
        job_id = await world.submit()
        job = await world.claim_one()
        claimed = (await world.results.record(job_id)).started_at
        assert claimed is not None
        at = await reaches(world, job_id, State.QUEUED)
        assert 1.49 <= at - claimed < 1.5 * 1.5 + 1.0  # B of the acceptance tests
        assert job.claims == 1


async def test_a_job_whose_worker_beats_is_never_taken_away(make_world: MakeWorld) -> None:
    world = make_world(lease_s=1.0)
    async with scheduling(world, 2):
        job_id = await world.submit()
        job = await world.claim_one()
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert await world.renew(job.lease) == []
            await asyncio.sleep(0.1)
        assert await world.states(job_id) == ["queued", "in_progress"]


async def test_a_worker_whose_redis_was_away_gets_time_to_beat_before_its_lease_counts_as_ended(
    start_redis: Callable[..., RedisServer], make_world: MakeWorld
) -> None:
    server = start_redis(aof=True)
    world = make_world(redis_url=server.url, lease_s=2.0, redis_timeout_s=1, bell_timeout_s=0.9)
    job_id = await world.submit()
    job = await world.claim_one()
    async with scheduling(world):
        await eventually(lambda: blocked(world))
        server.kill9()
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=2.5)  # longer than the lease
        server.start()
        await eventually(lambda: blocked(world))  # the scheduler has looked and sleeps
        assert await world.renew(job.lease) == []
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=1.5)  # longer than its patience
    assert await world.states(job_id) == ["queued", "in_progress"]


async def test_a_scheduler_outlives_a_restart_of_redis(
    start_redis: Callable[..., RedisServer], make_world: MakeWorld
) -> None:
    server = start_redis(aof=True)
    world = make_world(redis_url=server.url, redis_timeout_s=1, bell_timeout_s=0.5)
    async with scheduling(world) as (task,):
        job_id = await world.submit(delay_s=1.5)
        await eventually(lambda: blocked(world))
        server.kill9()
        server.start()
        await eventually(lambda: is_queued(world, job_id), what="the job's turn")
        assert not task.done()


async def is_queued(world: World, job_id: str) -> bool:
    """Whether a job is queued, as far as Redis answers."""
    try:
        return await world.state(job_id) == "queued"
    except (RedisError, StoreUnavailable):
        return False


async def test_a_job_whose_life_ends_expires_wherever_it_stands(make_world: MakeWorld) -> None:
    world = make_world()
    async with scheduling(world):
        running = await world.submit(ttl_s=1)
        job = await world.claim_one()
        waiting = await world.submit(ttl_s=1)
        scheduled = await world.submit(ttl_s=1, delay_s=60)
        for job_id in (running, waiting, scheduled):
            at = await reaches(world, job_id, State.EXPIRED)
            expires_at = (await world.results.record(job_id)).expires_at
            assert expires_at is not None
            assert expires_at <= at
        assert await world.queue.next_stop("generation:demo", "worker-1") == job.lease


async def test_what_retention_ended_is_tidied_up(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(inline_bytes=100, retention_s=1)
    await world.submit(input={"prompt": "x" * 1000})
    await world.complete(await world.claim_one())
    old = tmp_path / "blobs" / "100" / "blob"
    old.parent.mkdir(parents=True)
    old.write_text("from 1970")
    async with scheduling(world):
        await eventually(lambda: index_is_empty(world), what="the index being empty")
        await eventually(lambda: asyncio.sleep(0, not old.exists()), what="the old blob being gone")


async def index_is_empty(world: World) -> bool:
    """Whether the index lists nothing."""
    return int(await world.redis.xlen(f"{world.prefix}index")) == 0


async def test_every_shard_is_looked_after(make_world: MakeWorld) -> None:
    world = make_world(shards=3)
    ids = [await world.submit(i, model=f"m{i}", delay_s=0.5) for i in range(9)]
    assert len({job_id[4:6] for job_id in ids}) == 3
    async with scheduling(world):
        for job_id in ids:
            await reaches(world, job_id, State.QUEUED)


def test_after_work_the_scheduler_looks_again_and_else_sleeps_until_the_next_thing() -> None:
    assert _sleep_s([Swept(1, 5000), Swept(0, None)], 15) == 0.01
    assert _sleep_s([Swept(0, 5000), Swept(0, 700)], 15) == 0.7
    assert _sleep_s([Swept(0, None), Swept(0, None)], 15) == 15


# -- the process


@pytest.fixture
def environment(redis_url: str, tmp_path: Path) -> dict[str, str]:
    """Variables of a scheduler process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JARVIS_")}
    return kept | {"JARVIS_REDIS_URL": redis_url, "JARVIS_DATA_DIR": str(tmp_path)}


def started(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A scheduler process."""
    return subprocess.Popen([sys.executable, "-m", "scheduler"], env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_works_and_ends_at_once_on_a_signal(
    environment: dict[str, str], make_world: MakeWorld, signum: signal.Signals
) -> None:
    world = make_world()
    job_id = await world.submit(delay_s=0.2)
    process = started(environment)
    try:
        await reaches(world, job_id, State.QUEUED, 30)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"scheduler ready" in errors
    assert b"Traceback" not in errors


def test_wrong_settings_are_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JARVIS_LEASE_S", "soon")
    assert program.main([]) == 1
    assert "JARVIS_LEASE_S has value 'soon'" in capsys.readouterr().err


def test_a_missing_file_of_recurring_jobs_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("JARVIS_RECURRING", str(tmp_path / "none.toml"))
    assert program.main([]) == 1
    assert "none.toml" in capsys.readouterr().err
