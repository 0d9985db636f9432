"""Readers on a real Redis: following a job while it runs, through cut connections and restarts, and waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
import redis

from common import scripts
from common.errors import NotFound, StoreUnavailable
from common.jobs import ClaimedJob, JobEvent, JobResult
from common.keys import new_job_id
from common.queue import Outcome
from common.results import Results
from common.settings import Settings
from tests.conformance.world import World, eventually, spec
from tests.redis_server import RedisServer


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A queue whose followers look for themselves only every two seconds."""
    made = Settings(redis_url=redis_url, data_dir=tmp_path, bell_timeout_s=2)
    world = World(scripts.connect(made), made, "redis")
    yield world
    await world.results.close()
    await world.queue.close()


@pytest.fixture
async def reader(world: World) -> AsyncIterator[Results]:
    """Readers with connections of their own, which Redis lists under the name `reader`."""
    made = world.settings.model_copy(update={"redis_url": f"{world.settings.redis_url}?client_name=reader"})
    client = scripts.connect(made)
    reader = Results(client, made)
    yield reader
    await reader.close()
    await client.aclose()


async def followed(reader: Results, job_id: str, after: int = 0) -> list[JobEvent]:
    """Every event until the end."""
    return [event async for event in reader.follow(job_id, after)]


async def run_slowly(world: World, job: ClaimedJob, tokens: int) -> None:
    """Emit tokens one by one, then complete."""
    for i in range(tokens):
        await world.emit(job, f"t{i}", start=job.seq + i)
        await asyncio.sleep(0.001)
    await world.commit(Outcome.done(job, job.seq + tokens, JobResult({})))


def check(events: list[JobEvent], tokens: int, after: int = 0) -> None:
    """Each event once, in order, to the end."""
    assert [event.seq for event in events] == list(range(after + 1, tokens + 4))
    texts = [event.data["text"] for event in events if event.event == "token"]
    assert texts == [f"t{i}" for i in range(tokens)][max(0, after - 2) :]
    assert events[-1].data["status"] == "completed"


async def test_a_follower_sees_each_event_once_and_ends_with_the_job(world: World, reader: Results) -> None:
    job_id = await world.submit()
    following = asyncio.create_task(followed(reader, job_id))
    await run_slowly(world, await world.claim_one(), 200)
    check(await asyncio.wait_for(following, 10), 200)


async def test_a_follower_hears_of_an_event_at_once(world: World, reader: Results) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    async with aclosing(reader.follow(job_id, after=2)) as events:
        following = asyncio.ensure_future(anext(events))
        await eventually(lambda: asyncio.sleep(0, bool(reader.wakes._listeners)))
        await asyncio.sleep(0.1)  # it has read what there is and waits
        began = time.monotonic()
        await world.emit(job, "now")
        assert (await following).data == {"text": "now"}
        assert time.monotonic() - began < 1.0  # by the wake, not by the look every two seconds


async def test_many_followers_of_many_jobs_share_one_reader(world: World, reader: Results) -> None:
    ids = await world.submit_many(5)
    following = [asyncio.create_task(followed(reader, job_id)) for job_id in ids * 6]
    await asyncio.gather(*(run_slowly(world, job, 30) for job in await world.claim(5)))
    for events in await asyncio.wait_for(asyncio.gather(*following), 15):
        check(events, 30)
    assert len(reader.wakes._readers) == 1
    assert reader.wakes._listeners == {}


@pytest.mark.parametrize("after", [0, 1, 2, 17, 52])
async def test_a_follower_resumes_after_any_event(world: World, reader: Results, after: int) -> None:
    job_id = await world.submit()
    await run_slowly(world, await world.claim_one(), 50)
    check(await asyncio.wait_for(followed(reader, job_id, after), 5), 50, after)


async def test_a_follower_of_an_ended_job_with_nothing_new_ends_at_once(world: World, reader: Results) -> None:
    job_id = await world.submit()
    await world.complete(await world.claim_one())
    assert await asyncio.wait_for(followed(reader, job_id, after=3), 1) == []


async def test_no_event_is_lost_or_doubled_while_connections_are_cut(
    world: World, reader: Results, redis_server: RedisServer
) -> None:
    job_id = await world.submit()
    followers = [asyncio.create_task(followed(reader, job_id)) for _ in range(3)]
    cuts = 0

    async def cut() -> None:
        nonlocal cuts
        with redis_server.client() as plain:
            while True:
                for client in plain.client_list():
                    if client["name"] == "reader":
                        with suppress(redis.ResponseError):  # it went by itself
                            plain.client_kill_filter(_id=client["id"])
                            cuts += 1
                await asyncio.sleep(0.02)

    cutting = asyncio.create_task(cut())
    await run_slowly(world, await world.claim_one(), 300)
    cutting.cancel()
    for events in await asyncio.wait_for(asyncio.gather(*followers), 15):
        check(events, 300)
    assert cuts > 5


async def test_a_follower_outlives_a_restart_of_redis(start_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = start_redis(aof=True)
    made = Settings(redis_url=server.url, data_dir=tmp_path, bell_timeout_s=1)
    world = World(scripts.connect(made), made, "redis")
    job_id = await world.submit()
    job = await world.claim_one()
    following = asyncio.create_task(followed(world.results, job_id))
    await world.emit(job, "t0", "t1")
    server.kill9()
    with pytest.raises(StoreUnavailable):
        await world.results.record(job_id)
    server.start()
    await eventually(lambda: answers(world), what="Redis")
    await world.emit(job, "t2", start=job.seq + 2)
    await world.commit(Outcome.done(job, job.seq + 3, JobResult({})))
    check(await asyncio.wait_for(following, 10), 3)
    await world.results.close()
    await world.queue.close()


async def answers(world: World) -> bool:
    """Whether Redis answers."""
    try:
        await world.results.ready()
    except StoreUnavailable:
        return False
    return True


async def test_a_follower_of_a_job_whose_record_goes_is_told(world: World, reader: Results) -> None:
    job_id = await world.submit()
    following = asyncio.create_task(followed(reader, job_id, after=1))
    await eventually(lambda: asyncio.sleep(0, bool(reader.wakes._listeners)))
    await world.redis.delete(world.job_key(job_id))
    with pytest.raises(NotFound):
        await asyncio.wait_for(following, 10)


async def test_a_follower_that_goes_away_leaves_nothing_behind(world: World, reader: Results) -> None:
    job_id = await world.submit()
    async with aclosing(reader.follow(job_id)) as events:
        assert (await anext(events)).seq == 1
    assert reader.wakes._listeners == {}


async def test_wait_answers_as_soon_as_the_job_has_ended(world: World, reader: Results) -> None:
    job_id = await world.submit()
    waiting = asyncio.create_task(reader.wait(job_id, 30))
    job = await world.claim_one()
    await eventually(lambda: asyncio.sleep(0, bool(reader.wakes._listeners)))
    began = time.monotonic()
    await world.complete(job)
    assert (await waiting).status == "completed"
    assert time.monotonic() - began < 1.0


async def test_wait_answers_the_record_as_it_stands_when_the_time_is_over(world: World, reader: Results) -> None:
    job_id = await world.submit()
    began = time.monotonic()
    record = await reader.wait(job_id, 0.2)
    assert (record.status, record.queue_position) == ("queued", 1)
    assert 0.15 < time.monotonic() - began < 1.5


async def test_wait_for_an_ended_job_answers_at_once(world: World, reader: Results) -> None:
    job_id = await world.submit()
    await world.queue.cancel(job_id)
    assert (await asyncio.wait_for(reader.wait(job_id, 30), 1)).status == "cancelled"
    with pytest.raises(NotFound):
        await reader.wait(new_job_id("00"), 1)


async def test_a_submit_whose_reply_was_lost_is_sent_again_and_makes_one_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    real = scripts.run

    async def reply_lost_once(client: object, name: str, *args: object) -> object:
        reply = await real(client, name, *args)  # type: ignore[arg-type]
        sent.append(name)
        if len(sent) == 1:
            raise redis.ConnectionError("the reply was lost")
        return reply

    monkeypatch.setattr(scripts, "run", reply_lost_once)
    submitted = await world.queue.submit(spec())
    assert sent == ["submit", "submit"]
    assert await world.depth() == 1
    assert (await world.results.record(submitted.id, position=False)).status == "queued"


async def test_while_redis_is_away_every_call_says_so_in_time(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_redis()
    made = Settings(redis_url=server.url, data_dir=tmp_path, redis_timeout_s=0.5, bell_timeout_s=0.2)
    world = World(scripts.connect(made), made, "redis")
    job_id = await world.submit()
    for away, back in ((server.kill9, server.start), (server.pause, server.resume)):
        away()
        for call in (
            lambda: world.queue.submit(spec()),
            lambda: world.queue.cancel(job_id),
            lambda: world.queue.retry(job_id),
            lambda: world.results.record(job_id),
            lambda: world.results.result(job_id),
            lambda: world.results.events(job_id),
            lambda: world.results.list_jobs(),
            lambda: world.results.queues(),
            lambda: world.results.parked(),
            lambda: world.results.workers("generation:demo"),
            lambda: world.results.ready(),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call()
            assert time.monotonic() - began < 2.5
        back()
    await world.results.close()
    await world.queue.close()
