"""What holds an owner's jobs back while others' run: bounds on those in progress, and limits with `wait`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from common.jobs import JobRecord
from common.limits import Policy
from common.policies import Policies
from common.states import State
from tests.conformance.world import QUEUE, MakeWorld, World, ended, spec, users

# -- jobs in progress


async def test_an_owners_jobs_wait_while_as_many_run_as_he_may_have_and_others_run(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=2")
    await world.submit_many(10, user="ada")
    await world.submit_many(4, user="bob")
    jobs = await world.claim(10)
    assert Counter(users(jobs)) == {"a": 2, "b": 4}
    assert await world.claim(10) == []
    assert await world.depth() == 8
    await world.commit(ended(jobs[0]))
    assert users(await world.claim(10)) == "a"


@pytest.mark.parametrize("end", ["complete", "fail", "retry", "cancel", "expire", "poison"])
async def test_every_way_of_ending_lets_the_owners_next_job_run(make_world: MakeWorld, end: str) -> None:
    world = make_world(max_deaths=1)
    await Policies(world.redis, world.settings).set_share("ada", Policy.parse(["in_progress=1"]))
    await world.submit_many(3, user="ada")
    (job,) = await world.claim(3)
    assert await world.claim(3) == []
    await world.end(job, end)
    assert len(await world.claim(3)) == 1
    assert await world.redis.hgetall(f"{world.prefix}standing") == {b"running ada": b"1"}  # type: ignore[misc]


@pytest.mark.parametrize("how", ["release", "rescue"])
async def test_a_job_given_back_keeps_its_place_among_the_owners_running_ones(
    world: World, share: Callable[..., Awaitable[None]], how: str
) -> None:
    await share("ada", "in_progress=2")
    await world.submit_many(5, user="ada")
    jobs = await world.claim(5)
    assert len(jobs) == 2
    await (world.release(jobs[0]) if how == "release" else world.rescue(jobs[0]))
    assert [job.id for job in await world.claim(5)] == [jobs[0].id]
    assert await world.claim(5) == []


async def test_nothing_is_left_of_a_bounded_owner_whose_jobs_have_ended(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=2", "tokens=1000/60s,wait")
    await world.submit_many(7, user="ada", units=10)
    while jobs := await world.claim(5):
        await world.commit(*(ended(job, 5, 10) for job in jobs))
    parts = ("ada", "held", "aside", "standing")
    assert {name for name in await world.keys() if any(part in name for part in parts)} == {"standing"}
    assert await standing(world) == {"running ada", "tokens:60000 ada"}
    await world.queue.trim(world.prefix)
    assert await standing(world) == {"tokens:60000 ada"}
    await world.redis.hset(f"{world.prefix}standing", "tokens:60000 ada", "1")  # type: ignore[misc]  # free for long
    await world.queue.trim(world.prefix)
    assert await standing(world) == set()


async def standing(world: World) -> set[str]:
    """What is known of owners' bounds."""
    return {field.decode() for field in await world.redis.hkeys(f"{world.prefix}standing")}  # type: ignore[misc]


async def test_jobs_that_run_when_a_bound_changes_count_as_they_were_claimed(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await world.submit_many(9, user="ada")
    free = await world.claim(2)
    await share("ada", "in_progress=2")
    bound = await world.claim(9)
    assert len(bound) == 2
    await world.commit(*(ended(job) for job in free))
    assert await world.claim(9) == []  # those did not count
    await share("ada")
    more = await world.claim(1)  # and he is held no longer
    await share("ada", "in_progress=3")
    await world.commit(ended(more[0]))
    assert len(await world.claim(9)) == 1  # two of three still run
    await world.commit(ended(bound[0]))
    assert len(await world.claim(9)) == 1


async def test_what_runs_when_a_limit_changes_gives_back_what_it_took(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await world.submit_many(9, user="ada", units=40)
    (free,) = await world.claim(1)
    await share("ada", "tokens=100/1000s,wait")
    bound = await world.claim(9)
    assert len(bound) == 2
    await world.commit(ended(free, units=10))
    assert await world.claim(9) == []  # it had taken nothing
    await share("ada", "tokens=100/1000s,wait", "in_progress=5")
    await world.commit(*(ended(job, units=10) for job in bound))
    assert len(await world.claim(9)) == 2


async def test_claims_and_commits_of_hundreds_of_owners_with_many_limits(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    windows = [f"tokens=1M/{n}s,wait" for n in range(1, 21)]
    for n in range(400):
        await share(f"owner-{n}", "in_progress=1", *windows)
        await world.submit(user=f"owner-{n}", units=10)
    jobs = await world.claim(500)
    assert len(jobs) == 400
    await world.commit(*(ended(job, units=5) for job in jobs))
    standing = await world.redis.hgetall(f"{world.prefix}standing")  # type: ignore[misc]
    assert Counter(field.partition(b" ")[0] for field in standing)[b"running"] == 400
    assert len(standing) == 400 * 21
    assert {value for field, value in standing.items() if field.startswith(b"running")} == {b"0"}


async def test_a_job_that_was_given_back_and_is_cancelled_counts_no_more(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(2, user="ada")
    (job,) = await world.claim(1)
    await world.release(job)
    await world.queue.cancel(job.id)
    assert len(await world.claim(9)) == 1


async def test_a_claim_that_only_ends_lives_makes_room_for_the_next_one_and_wakes_a_worker(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=1")
    first, second = await world.submit_many(2, user="ada")
    (job,) = await world.claim(2)
    assert await world.claim(2) == []
    await world.release(job)
    await world.outlive(first)
    while await world.redis.lpop(f"{world.q}bell"):  # type: ignore[misc]
        pass
    assert await world.queue.claim(QUEUE, "worker-1", 2, 77) == []
    assert await world.state(first) == "expired"
    assert await world.queue.wait_for_bell(QUEUE)
    # No lease went out with the empty answer: asked again with the same number, it is a new claim.
    assert [job.id for job in await world.queue.claim(QUEUE, "worker-1", 2, 77)] == [second]


async def test_an_end_that_was_missed_does_not_hold_an_owner_for_ever(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(2, user="ada")
    (job,) = await world.claim(2)
    assert await world.claim(2) == []
    await world.redis.delete(f"{world.prefix}job:{job.id}")  # Redis lost it
    await world.redis.zadd(f"{world.prefix}held", {"ada": 1})  # some seconds pass
    await world.promote()
    assert len(await world.claim(2)) == 1


async def test_a_held_owner_whose_jobs_do_run_stays_held_when_he_is_looked_at(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(2, user="ada")
    await world.claim(2)
    await world.claim(2)
    await world.redis.zadd(f"{world.prefix}held", {"ada": 1})
    await world.promote()
    assert await world.redis.zscore(f"{world.prefix}held", "ada") > 1
    assert await world.redis.zcard(f"{world.q}normal:users") == 0


async def test_what_a_held_owner_submits_waits_too(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(2, user="ada")
    (job,) = await world.claim(2)
    await world.claim(2)
    await world.submit(user="ada", priority="high")
    assert await world.redis.exists(f"{world.q}high:users", f"{world.q}normal:users") == 0
    await world.complete(job)
    assert (await world.claim_one()).lane == "high"


async def test_a_held_owner_builds_up_no_credit(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(50, user="ada")
    await world.submit_many(100, user="bob")
    (held, *_) = await world.claim(1)
    assert held.user == "ada"
    for _ in range(40):
        await world.commit(ended(await world.claim_one()))
    await world.commit(ended(held))
    await share("ada")
    assert Counter(users(await world.claim(10))) == {"a": 5, "b": 5}


async def test_the_end_of_a_held_owners_job_wakes_a_worker(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "in_progress=1")
    await world.submit_many(2, user="ada")
    (job,) = await world.claim(2)
    await world.claim(2)
    while await world.redis.lpop(f"{world.q}bell"):  # type: ignore[misc]
        pass
    await world.complete(job)
    assert await world.queue.wait_for_bell(QUEUE)


# -- limits that make jobs wait


async def test_past_a_limit_with_wait_the_owners_jobs_wait_and_others_run(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "tokens=100/60s,wait")
    await world.submit_many(5, user="ada", units=40)
    await world.submit_many(3, user="bob", units=40)
    assert Counter(users(await world.claim(10))) == {"a": 2, "b": 3}
    until = await world.redis.zscore(f"{world.prefix}held", "ada")
    now_s, _ = await world.redis.time()
    # 80 are reserved: 20 more are free after 12 s.
    assert abs(until / 1000 - now_s - 12) <= 2
    await world.redis.delete(f"{world.prefix}standing")
    await world.redis.zadd(f"{world.prefix}held", {"ada": 1})
    await world.promote()
    assert users(await world.claim(10)) == "aa"


async def test_jobs_of_one_claim_take_of_a_limit_what_each_of_them_needs(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "tokens=1000/1000s,wait")
    sizes = (10, 10, 300, 20, 600, 100)
    for units in sizes:
        await world.submit(user="ada", units=units)
    jobs = await world.claim(10)
    assert len(jobs) == 5  # the last one does not fit
    standing = await world.redis.hget(f"{world.prefix}standing", "tokens:1000000 ada")  # type: ignore[misc]
    now_s, _ = await world.redis.time()
    assert abs(int(standing) / 1_000_000 - now_s - 940) <= 2  # a second for each of 940
    await world.commit(*(ended(job, units=units) for job, units in zip(jobs, sizes, strict=False)))
    assert await world.redis.hget(f"{world.prefix}standing", "tokens:1000000 ada") == standing  # type: ignore[misc]


async def test_a_job_that_waits_for_its_own_owner_says_so(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "in_progress=1")
    await share("bob", "tokens=50/60s,wait")
    await world.renew()
    for user in ("ada", "bob"):
        await world.submit_many(2, user=user, units=50)
    await world.claim(4)
    codes = {record.user: (await world.results.record(record.id)) for record in await waiting(world)}
    assert (codes["ada"].waiting_code, codes["bob"].waiting_code) == ("in_progress", "limit")
    assert "limit, until 20" in (codes["bob"].waiting_for or "")


async def waiting(world: World) -> list[JobRecord]:
    """The records of jobs that wait."""
    return (await world.results.list_jobs(status=State.QUEUED)).records


async def test_what_a_job_used_beyond_its_guess_counts_though_its_guess_is_free_again(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    for user in ("ada", "bob"):
        await share(user, "tokens=100/1s,wait")
        await world.submit_many(2, user=user, units=10)
    (ada,) = await world.claim(1)
    now_s, _ = await world.redis.time()
    before = (now_s - 5) * 1_000_000  # it has run for some seconds
    await world.redis.hset(f"{world.prefix}standing", "tokens:1000 ada", before)  # type: ignore[misc]
    await world.queue.trim(world.prefix)
    assert users(await world.claim(1)) == "b"
    await world.commit(ended(ada, 5, 2000))
    assert users(await world.claim(3)) == "b"


async def test_what_was_reserved_of_a_limit_and_not_used_is_free_at_the_jobs_end(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "tokens=100/60s,wait")
    await world.submit_many(5, user="ada", units=50)
    jobs = await world.claim(10)
    assert len(jobs) == 2
    await world.commit(*(ended(job, 5, 20) for job in jobs))  # 40 used: 60 are left
    assert len(await world.claim(10)) == 1


async def test_a_job_larger_than_the_whole_limit_runs_when_nothing_of_it_is_used(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "tokens=100/60s,wait")
    await world.submit_many(2, user="ada", units=500)
    assert len(await world.claim(10)) == 1


async def test_a_limit_of_audio_does_not_count_tokens(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "audio_seconds=10/60s,wait")
    await world.submit_many(3, user="ada", units=500)
    assert len(await world.claim(10)) == 3


async def test_a_scheduler_hears_of_a_held_owner_whose_time_comes_soon(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await share("ada", "tokens=1000/1s,wait")
    await world.submit_many(2, user="ada", units=1000)
    await world.claim(2)
    assert await world.redis.llen(f"{world.prefix}scheduler:bell") == 1  # type: ignore[misc]
    swept = await world.queue.promote(world.prefix)
    assert swept.next_ms is not None
    assert swept.next_ms <= 1000


async def test_many_held_owners_cost_a_claim_nothing(world: World, share: Callable[..., Awaitable[None]]) -> None:
    for n in range(60):
        await share(f"user-{n:02d}", "in_progress=1")
        await world.queue.submit_many([spec(i, user=f"user-{n:02d}") for i in range(2)])
    await world.submit_many(5, user="zoe")
    assert len(await world.claim(65)) == 65
    assert await world.claim(65) == []
    assert await world.redis.zcard(f"{world.prefix}held") == 60
    await world.submit(user="zoe")
    assert await world.redis.zrange(f"{world.q}normal:users", 0, -1) == [b"zoe"]


async def test_concurrent_claims_never_exceed_a_bound(world: World, share: Callable[..., Awaitable[None]]) -> None:
    await share("ada", "in_progress=3")
    await world.submit_many(30, user="ada")
    claims = await asyncio.gather(*(world.queue.claim(QUEUE, f"worker-{n}", 2, 1) for n in range(10)))
    assert sum(map(len, claims)) == 3
