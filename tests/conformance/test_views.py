"""What readers see of the queue: positions, lists, counters, and several shards at once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from common.jobs import JobRecord
from common.lists import BUCKETS_S
from common.queue import Queue
from common.states import State
from tests.conformance.world import QUEUE, MakeWorld, World, spec


async def position(world: World, job_id: str) -> tuple[int | None, str | None]:
    """A job's place and what it waits for."""
    record = await world.results.record(job_id)
    return record.queue_position, record.waiting_for


# -- positions


async def test_the_position_of_one_users_jobs_is_their_order(world: World) -> None:
    await world.renew()
    ids = await world.submit_many(4)
    assert [(await position(world, job_id))[0] for job_id in ids] == [1, 2, 3, 4]
    assert (await position(world, ids[0]))[1] == "a free slot"
    assert (await position(world, ids[3]))[1] == "this user's earlier jobs (3)"
    await world.claim()
    assert [(await position(world, job_id))[0] for job_id in ids] == [None, 1, 2, 3]


async def test_a_job_that_nobody_serves_waits_for_a_worker(world: World) -> None:
    job_id = await world.submit()
    assert await position(world, job_id) == (1, "a worker: none is running for this model")


async def test_a_job_that_does_not_wait_has_no_position(world: World) -> None:
    scheduled = await world.submit(delay_s=100)
    running = await world.submit()
    job = await world.claim_one()
    assert await position(world, running) == (None, None)
    place, waiting_for = await position(world, scheduled)
    assert place is None
    assert waiting_for is not None
    assert waiting_for.startswith("its time, 20")
    await world.complete(job)
    assert await position(world, running) == (None, None)


async def test_a_position_says_how_many_jobs_start_before(world: World) -> None:
    """For a lane alone, position and order of starts agree exactly."""
    await world.renew()
    for count, user in ((6, "ada"), (2, "bob"), (9, "eve")):
        await world.submit_many(count, user=user)
    await world.run_some(4)
    await world.submit_many(3, user="kim")
    waiting = [r for r in (await world.results.list_jobs(limit=100)).records if r.status == State.QUEUED]
    told = {record.id: (await position(world, record.id))[0] for record in waiting}
    started = [(await world.claim_one()).id for _ in waiting]
    real = {job_id: place for place, job_id in enumerate(started, 1)}
    # Users who stand at the same virtual time are served in either order: one place of difference for each.
    for job_id, place in real.items():
        told_place = told[job_id]
        assert told_place is not None
        assert abs(told_place - place) <= 3


async def test_a_newcomers_position_does_not_count_a_whole_flood(world: World) -> None:
    await world.renew()
    await world.submit_many(500, user="flood")
    await world.claim(3)
    job_id = await world.submit(user="newcomer")
    place, _ = await position(world, job_id)
    assert place is not None
    assert place <= 2


async def test_jobs_given_back_stand_before_the_others(world: World) -> None:
    await world.renew()
    ids = await world.submit_many(4)
    for job in await world.claim(2):
        await world.release(job)
    assert [(await position(world, job_id))[0] for job_id in ids] == [1, 2, 3, 4]
    assert "before it" in str((await position(world, ids[2]))[1])


async def test_higher_lanes_stand_before_lower_ones(world: World) -> None:
    await world.renew()
    await world.submit_many(3, priority="high")
    await world.submit_many(2, priority="normal")
    low = await world.submit(priority="low")
    place, waiting_for = await position(world, low)
    assert place == 5  # 64:16:1 by turns: one of the normal lane's two comes after it
    assert waiting_for == "jobs of a higher priority (4) and 0 before it in its lane"
    assert [(await world.claim_one()).id for _ in range(6)].index(low) == 4


async def test_beyond_many_users_a_position_is_an_estimate(world: World) -> None:
    for i in range(300):
        await world.submit(user=f"user-{i:03}")
    job_id = await world.submit_many(2, user="zoe")
    place, _ = await position(world, job_id[1])
    assert place is not None
    assert 200 < place < 400


# -- lists


async def all_pages(world: World, limit: int, **filters: object) -> list[JobRecord]:
    """Every record of a list, page by page."""
    records: list[JobRecord] = []
    after = None
    while True:
        page = await world.results.list_jobs(after=after, limit=limit, **filters)  # type: ignore[arg-type]
        assert len(page.records) <= limit
        records += page.records
        if page.next is None:
            return records
        after = page.next


@pytest.mark.parametrize("shards", [1, 4])
async def test_five_hundred_jobs_are_listed_once_each_newest_first(make_world: MakeWorld, shards: int) -> None:
    world = make_world(shards=shards)
    jobs = [spec(i, model=f"m{i % 7}", user=f"user-{i % 3}") for i in range(500)]
    ids = [one.id for one in await world.queue.submit_many(jobs)]
    for limit in (60, 200):
        listed = await all_pages(world, limit)
        assert sorted(record.id for record in listed) == sorted(ids)
        times = [record.created_at for record in listed]
        assert all(newer >= older - 0.002 for newer, older in pairwise(times))


async def test_jobs_that_two_shards_accepted_at_the_same_moment_are_both_listed(make_world: MakeWorld) -> None:
    world = make_world(shards=4)
    ids = [await world.submit(i, model=f"m{i}") for i in range(20)]
    for prefix in world.queue.keys.prefixes():
        entries = await world.redis.xrange(f"{prefix}index")
        await world.redis.delete(f"{prefix}index")
        for number, (_, fields) in enumerate(entries):
            await world.redis.xadd(f"{prefix}index", fields, id=f"1000-{number}")
    for limit in (1, 2, 3, 7):
        assert sorted(record.id for record in await all_pages(world, limit)) == sorted(ids)


async def test_a_list_can_be_narrowed_by_user_status_kind_and_model(world: World) -> None:
    jobs = [
        spec(i, user=f"user-{i % 2}", kind=["generation", "embedding"][i % 3 == 0], model=f"m{i % 5}")
        for i in range(500)
    ]
    ids = [one.id for one in await world.queue.submit_many(jobs)]
    await world.queue.cancel(ids[3])

    def wanted(check: object) -> list[str]:
        return [job_id for job_id, job in zip(ids, jobs, strict=True) if check(job)][::-1]  # type: ignore[operator]

    async def listed(**filters: object) -> list[str]:
        return [record.id for record in await all_pages(world, 40, **filters)]

    assert await listed(user="user-1") == wanted(lambda job: job.user == "user-1")
    assert await listed(kind="embedding") == wanted(lambda job: job.kind == "embedding")
    assert await listed(model="m4") == wanted(lambda job: job.model == "m4")
    assert await listed(user="user-0", kind="generation", model="m2") == wanted(
        lambda job: (job.user, job.kind, job.model) == ("user-0", "generation", "m2")
    )
    assert await listed(status=State.CANCELLED) == [ids[3]]
    assert await listed(status=State.FAILED) == []
    assert await listed(user="nobody") == []


async def test_a_narrow_filter_reads_a_bounded_number_of_entries(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.lists.SCAN", 400)
    first = await world.submit(user="rare")
    await world.submit_many(600, user="common")
    page = await world.results.list_jobs(user="rare")
    assert page.records == []
    assert page.next is not None
    assert [record.id for record in await all_pages(world, 5, user="rare")] == [first]


async def test_a_list_leaves_out_records_that_are_gone(world: World) -> None:
    ids = await world.submit_many(3)
    await world.redis.delete(world.job_key(ids[1]))
    assert [record.id for record in (await world.results.list_jobs()).records] == [ids[2], ids[0]]


# -- counters


async def test_counters_and_histograms_add_up(world: World) -> None:
    await world.submit_many(10, user="ada")
    await world.submit_many(4, user="bob", priority="high")
    await world.submit(user="bob", priority="low", delay_s=100)
    jobs = await world.claim(8)
    await world.complete(*jobs[:3])
    await world.fail(jobs[3], retryable=False)
    await world.fail(jobs[4], retryable=True, delay_s=100)
    await world.release(jobs[5])
    await world.renew()
    (stats,) = await world.results.queues()
    assert (stats.queue, stats.kind, stats.model) == (QUEUE, "generation", "demo")
    counts = stats.counts
    assert counts["state:queued"] == 15
    assert counts["state:scheduled"] == 2
    assert counts["state:in_progress"] == 8
    assert counts["state:completed"] == 3
    assert counts["state:failed"] == 1
    buckets = range(1, len(BUCKETS_S) + 2)
    assert sum(counts.get(f"wait:{n}", 0) for n in buckets) == 8
    assert sum(counts.get(f"run:{n}", 0) for n in buckets) == 4
    assert counts["wait:sum"] >= 0
    assert counts["run:sum"] >= 0
    assert (stats.in_progress, stats.workers) == (2, 1)
    assert sum(stats.depth.values()) == 7
    assert stats.users_waiting in (1, 2)
    assert stats.oldest_wait_s is not None
    assert 0 <= stats.oldest_wait_s < 30


async def test_a_long_wait_falls_into_the_last_bucket(world: World) -> None:
    job_id = await world.submit()
    await world.redis.hset(world.job_key(job_id), "history", "1q1000000000000")  # type: ignore[misc]
    await world.claim()
    (stats,) = await world.results.queues()
    assert stats.counts[f"wait:{len(BUCKETS_S) + 1}"] == 1


async def test_a_queue_without_waiting_jobs_has_no_oldest_wait(world: World) -> None:
    await world.submit()
    await world.run_all()
    (stats,) = await world.results.queues()
    assert stats.oldest_wait_s is None
    assert stats.depth == {"high": 0, "normal": 0, "low": 0}


# -- shards


async def test_queues_of_four_shards_work_side_by_side(make_world: MakeWorld) -> None:
    world = make_world(shards=4)
    models = [f"m{i}" for i in range(12)]
    ids = [one.id for one in await world.queue.submit_many([spec(i, model=models[i % 12]) for i in range(48)])]
    assert len({job_id[4:6] for job_id in ids}) == 4
    names = await world.redis.keys("*")
    assert {name.split(b"}")[0][-2:].decode() for name in names} == {"00", "01", "02", "03"}
    for model in models:
        jobs = await world.queue.claim(f"generation:{model}", "worker-1", 10, 1)
        assert [job.id for job in jobs] == [job_id for i, job_id in enumerate(ids) if models[i % 12] == model]
        for job in jobs[:2]:
            assert job.model == model
            assert await world.state(job.id) == "in_progress"
            await world.queue.cancel(job.id)
    assert len(await world.results.queues()) == 12
    assert len(await all_pages(world, 5, status=State.CANCELLED)) == 24


async def test_the_id_of_a_shard_that_is_not_there_is_not_ours(make_world: MakeWorld) -> None:
    many, few = make_world(shards=256), make_world(shards=1)
    ids = [await many.submit(model=f"m{i}") for i in range(10)]
    beyond = next(job_id for job_id in ids if job_id[4:6] != "00")
    with pytest.raises(Exception, match="no job"):
        await few.results.record(beyond)


async def test_namespaces_do_not_see_each_other(make_world: MakeWorld) -> None:
    one, other = make_world(namespace="one"), make_world(namespace="other")
    await one.submit()
    assert await other.claim() == []
    assert (await other.results.list_jobs()).records == []
    assert len(await one.claim()) == 1


async def test_a_queue_prepares_redis_where_it_may(make_world: MakeWorld) -> None:
    for tune in (True, False):
        world = make_world(tune_redis=tune)
        await world.queue.prepare()
        assert isinstance(world.queue, Queue)
        await world.results.ready()
