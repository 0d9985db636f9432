"""Leases: kept by a beat, lost by silence, and what is parked when workers die under it again and again."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import NotFound
from tests.conformance.world import QUEUE, MakeWorld, World

# -- renew


async def test_a_renewed_lease_ends_later(make_world: MakeWorld) -> None:
    world = make_world(lease_s=30)
    await world.submit()
    job = await world.claim_one()
    await world.redis.zadd(f"{world.q}leases", {job.lease: 1})
    assert await world.renew(job.lease) == []
    assert (await world.queue.rescue(world.prefix)).moved == 0


async def test_a_stale_renewal_reports_the_loss_and_steals_nothing(world: World) -> None:
    await world.submit()
    stale = await world.claim_one("worker-1")
    await world.rescue(stale)
    assert await world.renew(stale.lease) == [stale.lease]
    fresh = await world.claim_one("worker-2")
    assert await world.renew(stale.lease, fresh.lease) == [stale.lease]
    assert await world.redis.zrange(f"{world.q}leases", 0, -1) == [fresh.lease.encode()]
    assert (await world.results.record(stale.id)).worker == "worker-2"


async def test_ended_jobs_are_reported_as_lost_leases(world: World) -> None:
    await world.submit_many(3)
    done, cancelled, kept = await world.claim(3)
    await world.complete(done)
    await world.queue.cancel(cancelled.id)
    assert await world.renew(done.lease, cancelled.lease, kept.lease) == [done.lease, cancelled.lease]


async def test_a_beat_lists_the_worker_until_it_falls_silent(make_world: MakeWorld) -> None:
    world = make_world(lease_s=20)
    await world.renew()
    assert await world.results.workers(QUEUE) == [{"id": "worker-1"}]
    assert 15_000 < await world.ttl_ms(f"{world.q}worker:worker-1") <= 20_000
    await world.redis.zadd(f"{world.q}workers", {"worker-1": 1})
    assert await world.results.workers(QUEUE) == []
    await world.queue.rescue(world.prefix)
    assert await world.redis.zcard(f"{world.q}workers") == 0


# -- rescue


async def test_a_lease_that_has_not_ended_is_left_alone(make_world: MakeWorld) -> None:
    world = make_world(lease_s=30)
    await world.submit()
    job = await world.claim_one()
    swept = await world.queue.rescue(world.prefix)
    assert swept.moved == 0
    assert swept.next_ms == pytest.approx(30_000, abs=2_000)
    assert await world.state(job.id) == "in_progress"
    assert (await world.queue.rescue(world.prefix)).moved == 0


async def test_a_job_of_a_silent_worker_starts_first_elsewhere(world: World) -> None:
    await world.submit_many(3, user="ada")
    await world.submit_many(3, user="bob")
    job = await world.claim_one("dead")
    assert (await world.rescue(job)).moved == 1
    assert await world.redis.zcard(f"{world.q}leases") == 0
    again = await world.claim_one("alive")
    assert (again.id, again.claims, again.attempts) == (job.id, 2, 0)
    assert await world.states(job.id) == ["queued", "in_progress", "queued", "in_progress"]


async def test_concurrent_rescuers_move_a_job_once(world: World) -> None:
    ids = await world.submit_many(20)
    for job in await world.claim(20):
        await world.redis.zadd(f"{world.q}leases", {job.lease: 1})
    swept = await asyncio.gather(*(world.queue.rescue(world.prefix) for _ in range(5)))
    assert sum(one.moved for one in swept) == 20
    assert await world.depth() == 20
    assert sorted(job.id for job in await world.claim(50)) == sorted(ids)


async def test_a_lease_left_over_from_an_ended_job_is_swept_away(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    await world.complete(job)
    await world.redis.zadd(f"{world.q}leases", {job.lease: 1, "job_gone:1": 1})
    assert await world.queue.rescue(world.prefix) == (0, None)
    assert await world.state(job.id) == "completed"


async def test_a_job_that_outlived_its_workers_too_often_is_parked_as_poisoned(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=3)
    job_id = await world.submit()
    for claims in (1, 2, 3):
        job = await world.claim_one(f"worker-{claims}")
        assert job.claims == claims
        await world.rescue(job)
    record = await world.results.record(job_id)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "poisoned"
    assert "3 times" in record.error.message
    assert len(record.history) == 7
    (parked,) = await world.results.parked()
    assert (parked.id, parked.queue) == (job_id, QUEUE)
    assert "poisoned" in parked.reason
    assert await world.claim(5) == []
    assert await world.redis.exists(world.stream()) == 0


async def test_a_job_whose_next_death_would_park_it_ends_the_claim_it_is_in(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=3)
    suspect = await world.submit()
    for _ in range(2):
        job = await world.claim_one()
        assert not job.suspect
        await world.rescue(job)
    others = await world.submit_many(3)
    (job,) = await world.claim(5)
    assert (job.id, job.suspect) == (suspect, True)
    assert await world.queue.wait_for_bell(QUEUE)  # for the jobs behind it
    assert [other.id for other in await world.claim(5)] == others


async def test_a_released_or_repeated_delivery_does_not_count_towards_poison(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=2)
    await world.submit()
    for _ in range(5):
        job = await world.claim_one()
        await world.release(job)
    await world.rescue(await world.claim_one())
    assert await world.state(job.id) == "queued"


async def test_a_parked_job_can_be_replayed_as_a_new_one(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    job_id = await world.submit(9)
    await world.rescue(await world.claim_one())
    replayed = await world.queue.replay(job_id)
    assert replayed.created
    assert await world.results.parked() == []
    job = await world.claim_one()
    assert (job.id, job.spec.input) == (replayed.id, {"prompt": "number 9"})
    assert (await world.results.record(job.id)).retry_of == job_id
    assert await world.state(job_id) == "failed"


async def test_a_parked_entry_without_a_record_cannot_be_replayed(world: World) -> None:
    orphan = await world.submit()
    await world.redis.delete(world.job_key(orphan))
    await world.claim()
    (parked,) = await world.results.parked()
    with pytest.raises(NotFound):
        await world.queue.replay(parked.id)


async def test_the_parked_list_is_newest_first_and_paged(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    ids = await world.submit_many(5)
    for at, job in enumerate(await world.claim(5)):
        await world.rescue(job)
        await world.redis.zadd(f"{world.prefix}parked", {job.id: at})
    first = await world.results.parked(limit=2)
    rest = await world.results.parked(after=first[-1].id)
    assert [row.id for row in first + rest] == ids[::-1]
    assert await world.results.parked(after=ids[0]) == []


async def test_the_parked_list_is_bounded(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    await world.redis.zadd(f"{world.prefix}parked", {f"old-{i}": i for i in range(10_005)})
    await world.submit()
    await world.rescue(await world.claim_one())
    assert await world.redis.zcard(f"{world.prefix}parked") == 10_000
