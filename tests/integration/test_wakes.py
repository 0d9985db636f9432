"""The shared blocking reader: it wakes the right followers, and a lost connection costs a read, never a wake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from itertools import count
from pathlib import Path

import pytest

import common.looks
import common.wakes
from common import scripts
from common.jobs import JobEvent
from common.queue import Event
from common.settings import Settings
from common.wakes import UNREAD, Listener, Wakes
from tests.conformance.world import QUEUE, World
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


async def woken(listener: Listener, timeout_s: float = 5.0) -> None:
    """Wait for a wake and take it."""
    await asyncio.wait_for(listener._wake.wait(), timeout_s)
    listener._wake.clear()


def numbered(*numbers: int) -> list[JobEvent]:
    """Token events with these numbers."""
    return [JobEvent(number, "token", {"text": str(number)}) for number in numbers]


@pytest.mark.parametrize(
    ("told", "after", "heard"),
    [
        ([3, 4], 2, [3, 4]),
        ([4, 3], 2, [3, 4]),  # the state stream and the token stream are read one after the other
        ([3, 3, 4], 2, [3, 4]),  # an emit sent again
        ([1, 2, 3], 2, [3]),  # the follower has read those itself meanwhile
        ([4, 5], 2, []),  # 3 was missed
        ([3, 5], 2, []),
        ([], 2, []),
    ],
)
async def test_a_follower_takes_only_news_that_leave_no_gap(told: list[int], after: int, heard: list[int]) -> None:
    listener = Listener()
    for event in numbered(*told):
        listener.tell(event)
    assert [event.seq for event in await listener.news(after, 0.01)] == heard


async def test_news_that_the_follower_has_seen_do_not_send_it_to_the_job_again() -> None:
    listener = Listener()
    listener.tell(numbered(2)[0])
    asyncio.get_running_loop().call_later(0.05, listener.tell, numbered(3)[0])
    assert [event.seq for event in await listener.news(2, 5)] == [3]


async def test_news_without_their_event_and_too_many_news_send_the_follower_to_the_job_itself() -> None:
    listener = Listener()
    listener.tell(numbered(3)[0])
    listener.tell(None)
    assert await listener.news(2, 1) == []
    for event in numbered(*range(3, 3 + UNREAD + 1)):
        listener.tell(event)
    assert await listener.news(2, 1) == []
    listener.tell(numbered(3)[0])
    assert [event.seq for event in await listener.news(2, 1)] == [3]


async def test_the_readers_bring_states_and_tokens_themselves(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    async with wakes.listen(job_id) as listener:
        await listener.news(0, 0.2)  # the first look of the reader
        job = await world.claim_one()
        assert [event.data["status"] for event in await listener.news(1, 5)] == ["in_progress"]
        await world.emit(job, "a")
        assert [event.data["text"] for event in await listener.news(2, 5)] == ["a"]
        await world.queue.cancel(job_id)
        assert await listener.news(3, 5) == []  # why it ended is in the record


async def test_a_move_wakes_the_followers_of_its_job_and_no_others(world: World, wakes: Wakes) -> None:
    one, other = await world.submit(1), await world.submit(2)
    async with wakes.listen(one) as first, wakes.listen(one) as second, wakes.listen(other) as third:
        for wake in (first, second, third):
            wake._wake.clear()
        await world.queue.cancel(one)
        await woken(first)
        await woken(second)
        assert not third._wake.is_set()


async def test_tokens_wake_their_followers(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    async with wakes.listen(job_id) as wake:
        wake._wake.clear()
        await world.emit(job, "a")
        await woken(wake)


async def test_one_who_waits_for_the_end_hears_of_nothing_before(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    async with wakes.listen(job_id) as follower:  # hears the same and more
        with wakes.listen_for_end(job_id) as listener:
            await follower.news(0, 0.2)  # the first look of the reader
            listener._wake.clear()
            job = await world.claim_one()
            assert len(await follower.news(1, 5)) == 1
            await world.emit(job, "a")
            assert len(await follower.news(2, 5)) == 1
            assert not listener._wake.is_set()
            await world.complete(job)
            await woken(listener)


async def test_one_call_that_moves_many_jobs_wakes_all_of_them(world: World, wakes: Wakes) -> None:
    ids = await world.submit_many(3)
    async with wakes.listen(ids[0]) as first, wakes.listen(ids[2]) as last:
        first._wake.clear()
        last._wake.clear()
        await world.claim(3)
        await woken(first)
        await woken(last)


async def test_workers_hear_which_jobs_are_read_for_as_long_as_somebody_reads_them(
    world: World, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.wakes, "READ_S", 0.3)
    await world.submit_many(2)
    followed, awaited = await world.claim(2)
    numbers = count(followed.seq + 1)

    async def read() -> set[str]:
        events = [
            Event(job, number, "token", {"text": ""}) for number in [next(numbers)] for job in (followed, awaited)
        ]
        return {event.job.id for event in events} - (await world.queue.emit(QUEUE, events)).unread

    assert await read() == set()
    async with wakes.listen(followed.id):
        with wakes.listen_for_end(awaited.id):
            for _ in range(20):  # three times as long as it was noted for at first
                assert await read() == {followed.id}
                await asyncio.sleep(0.05)
    await asyncio.sleep(0.4)  # nobody reads any more: what was noted has ended
    assert await read() == set()


async def test_each_shard_has_one_reader(world: World, wakes: Wakes) -> None:
    ids = [await world.submit(i, model=f"m{i}") for i in range(6)]
    assert {job_id[4:6] for job_id in ids} == {"00", "01"}
    for job_id in ids:
        async with wakes.listen(job_id) as wake:
            wake._wake.clear()
            await world.queue.cancel(job_id)
            await woken(wake)
    assert len(wakes._readers) == 2


async def test_nothing_is_missed_between_two_reads(world: World, wakes: Wakes) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    async with wakes.listen(job_id) as wake:
        wake._wake.clear()
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
        wake._wake.clear()
        await world.queue.cancel(job_id)
        await woken(wake)


async def test_a_cut_connection_wakes_everyone_to_look_for_themselves(
    world: World, wakes: Wakes, redis_server: RedisServer
) -> None:
    job_id = await world.submit()
    async with wakes.listen(job_id) as wake:
        wake._wake.clear()
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
        assert not wake._wake.is_set()
        server.start()
        await woken(wake)
    await wakes.close()
    await world.queue.close()


async def test_followers_that_begin_together_look_together(world: World, wakes: Wakes) -> None:
    ids = await world.submit_many(3)
    [job] = await world.claim(1)
    await world.emit(job, "a", "b")
    async with wakes.listen(ids[0]) as first:  # the readers have started
        assert first.seen is not None
        assert [(entry, fields[1]) for entry, fields in first.seen.tokens] == [(b"3-0", b"token"), (b"4-0", b"token")]
    before = await calls(world)
    missing = ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1")
    async with AsyncExitStack() as stack:
        listening = [stack.enter_async_context(wakes.listen(job_id, 3)) for job_id in [*ids, missing, *ids * 3]]
        listeners = await asyncio.gather(*listening)
        seen = [listener.seen for listener in listeners]
        emitted = await world.queue.emit(QUEUE, [Event(job, 5, "token", {"text": "c"})])
        assert emitted.unread == set(), "the look has said that somebody reads"
        assert [event.data["text"] for event in await listeners[0].news(4, 5)] == ["c"]
    assert all(one is not None for one in seen)
    assert [None if one is None else len(one.tokens) for one in seen[:4]] == [1, 0, 0, 0]
    assert [one is not None and one.history is None for one in seen[:4]] == [False, False, False, True]
    assert await calls(world) <= before + 3, "the emit, a look, and one at all that came meanwhile"


async def test_a_job_with_many_events_must_be_read_by_itself(
    world: World, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.looks, "MOST_EVENTS", 3)
    job_id = await world.submit()
    job = await world.claim_one()
    await world.emit(job, "a", "b", "c")
    async with wakes.listen(job_id) as all_of_it, wakes.listen(job_id, 3) as the_rest:
        assert all_of_it.seen is None
        assert the_rest.seen is not None
    async with asyncio.timeout(5), aclosing(world.results.follow(job_id)) as events:
        assert [(await anext(events)).seq for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_a_wait_ends_at_its_own_limit_whatever_the_last_one_had() -> None:
    listener = Listener()
    for limit_s in (5.0, 0.1, 0.05, 0.2):
        if limit_s == 5.0:
            listener.tell(numbered(3)[0])
        started = asyncio.get_running_loop().time()
        await listener.news(2, limit_s)
        waited_s = asyncio.get_running_loop().time() - started
        assert waited_s < 0.02 if limit_s == 5.0 else limit_s - 0.01 < waited_s < limit_s + 1
    listener.close()


async def calls(world: World) -> int:
    """How many scripts Redis has run."""
    found = await world.redis.info("commandstats")
    return int(found.get("cmdstat_evalsha", {"calls": 0})["calls"])
