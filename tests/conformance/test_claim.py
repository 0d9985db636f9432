"""Claim: which jobs a worker gets, in which order, and what it never gets."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from common.jobs import ClaimedJob
from common.scripts import execute
from tests.conformance.world import QUEUE, MakeWorld, World, spec


async def test_a_claimed_job_has_a_lease_a_worker_and_a_claim_counted(make_world: MakeWorld) -> None:
    world = make_world(lease_s=30)
    job_id = await world.submit(3, user="ada")
    job = await world.claim_one("worker-7")
    assert (job.id, job.claims, job.attempts, job.seq, job.user, job.lane) == (job_id, 1, 0, 2, "ada", "normal")
    assert (job.kind, job.model, job.spec.input) == ("generation", "demo", {"prompt": "number 3"})
    record = await world.results.record(job_id)
    assert (record.status.value, record.worker, record.claims) == ("in_progress", "worker-7", 1)
    assert record.started_at is not None
    assert await world.redis.zrange(f"{world.q}leases", 0, -1) == [job.lease.encode()]
    assert await world.depth() == 0


async def test_an_empty_queue_gives_nothing(world: World) -> None:
    assert await world.claim(10) == []


@pytest.mark.parametrize("count", [1, 3, 10, 25])
async def test_a_claim_gives_exactly_what_was_asked_or_all_there_is(world: World, count: int) -> None:
    for user in ("ada", "bob", "eve"):
        for lane in ("high", "normal", "low"):
            await world.submit_many(2, user=user, priority=lane)
    assert len(await world.claim(count)) == min(count, 18)


async def test_no_job_is_given_twice_to_concurrent_workers(world: World) -> None:
    ids = [await world.submit(i, user=f"user-{i % 7}") for i in range(100)]
    claims = [world.queue.claim(QUEUE, f"worker-{i}", 3, 1) for i in range(40)]
    taken = [job.id for jobs in await asyncio.gather(*claims) for job in jobs]
    assert sorted(taken) == sorted(ids)


async def test_jobs_of_one_user_start_in_the_order_of_submission(world: World) -> None:
    ids = await world.submit_many(30)
    assert [job.id for job in await world.run_all(7)] == ids


# -- the request number


async def test_the_same_request_number_returns_the_same_jobs(world: World) -> None:
    await world.submit_many(5)
    first = await world.queue.claim(QUEUE, "worker-1", 2, 7)
    again = await world.queue.claim(QUEUE, "worker-1", 2, 7)
    assert again == first
    following = await world.queue.claim(QUEUE, "worker-1", 2, 8)
    assert not {job.id for job in first} & {job.id for job in following}


async def test_the_same_request_number_of_another_worker_is_another_claim(world: World) -> None:
    await world.submit_many(2)
    (one,) = await world.queue.claim(QUEUE, "worker-1", 1, 7)
    (two,) = await world.queue.claim(QUEUE, "worker-2", 1, 7)
    assert one.id != two.id


async def test_a_repeated_claim_leaves_out_what_is_not_the_workers_any_more(world: World) -> None:
    await world.submit_many(4)
    jobs = await world.queue.claim(QUEUE, "worker-1", 4, 7)
    await world.complete(jobs[0])
    await world.rescue(jobs[1])
    await world.queue.cancel(jobs[2].id)
    assert [job.id for job in await world.queue.claim(QUEUE, "worker-1", 4, 7)] == [jobs[3].id]


async def test_an_empty_claim_repeated_brings_what_came_meanwhile_and_then_always_that(world: World) -> None:
    assert await world.queue.claim(QUEUE, "worker-1", 2, 7) == []
    await world.submit()
    first = await world.queue.claim(QUEUE, "worker-1", 2, 7)
    assert len(first) == 1
    await world.submit()
    assert await world.queue.claim(QUEUE, "worker-1", 2, 7) == first
    assert len(await world.queue.claim(QUEUE, "worker-1", 2, 8)) == 1


# -- lanes


def lanes(jobs: list[ClaimedJob]) -> Counter[str]:
    """How many jobs of each lane."""
    return Counter(job.lane for job in jobs)


@pytest.mark.parametrize("size", [1, 2, 7, 21, 100])
async def test_lanes_share_seven_to_two_to_one_after_a_burst_whatever_the_size_of_claims(
    world: World, size: int
) -> None:
    for lane in ("low", "normal", "high"):
        await world.submit_many(250, priority=lane)
    taken: list[ClaimedJob] = []
    while len(taken) < 264:
        taken += await world.claim(min(size, 264 - len(taken)))
    # 64 of 64:16:1, then 200 of 7:2:1.
    expected = {"high": 51 + 140, "normal": 12 + 40, "low": 1 + 20}
    assert all(abs(lanes(taken)[lane] - expected[lane]) <= 2 for lane in expected)


async def test_a_burst_of_the_high_lane_starts_before_the_second_next_low_job(world: World) -> None:
    """Acceptance test 10: 1,000 low ones wait, then 50 high ones come."""
    await world.submit_many(200, priority="low")
    await world.run_some(30)
    await world.submit_many(50, priority="high")
    started = [(await world.claim_one()).lane for _ in range(52)]
    assert Counter(started[: len(started) - started[::-1].index("high")])["low"] <= 1


@pytest.mark.parametrize("others", [("high",), ("high", "normal")])
async def test_the_low_lane_has_a_tenth_of_the_starts_under_endless_higher_load(
    world: World, others: tuple[str, ...]
) -> None:
    for lane in (*others, "low"):
        await world.submit_many(500, priority=lane)
    started = [job.lane for _ in range(20) for job in await world.claim(25)]
    assert Counter(started[100:])["low"] >= 40
    places = [i for i, lane in enumerate(started) if lane == "low"]
    assert max(after - before for before, after in zip([-1, *places], places, strict=False)) <= 64


async def test_an_empty_lanes_share_goes_to_the_others_at_once(world: World) -> None:
    await world.submit_many(50, priority="low")
    assert lanes(await world.claim(50)) == {"low": 50}
    await world.submit_many(40, priority="low")
    await world.submit_many(40, priority="normal")
    assert lanes(await world.claim(50)) == {"normal": 40, "low": 10}


async def test_a_lane_saves_up_nothing_while_it_is_empty(world: World) -> None:
    await world.submit_many(300, priority="high")
    await world.submit_many(50, priority="normal")
    await world.claim(50)  # low was empty through all of these
    await world.submit_many(50, priority="low")
    assert lanes(await world.claim(42))["low"] <= 3


async def test_fifty_high_jobs_pass_a_thousand_low_ones(world: World) -> None:
    await world.submit_many(1000, priority="low")
    await world.claim(1)
    high = set(await world.submit_many(50, priority="high"))
    started = [(await world.claim_one()).id for _ in range(54)]
    assert high <= set(started)


# -- users


async def test_a_newcomer_starts_after_at_most_one_claims_jobs_of_a_flood_of_a_thousand(world: World) -> None:
    await world.submit_many(1000, user="flood")
    slots = 8
    for _ in range(5):
        await world.claim(slots)
    newcomer = await world.submit(user="newcomer")
    assert newcomer in [job.id for job in await world.claim(slots)]


async def test_a_newcomer_is_next_but_one_at_the_latest_with_one_slot(world: World) -> None:
    await world.submit_many(100, user="a-flood")
    for _ in range(10):
        await world.claim_one()
    newcomer = await world.submit(user="newcomer")
    assert newcomer in [(await world.claim_one()).id for _ in range(2)]


@pytest.mark.parametrize("size", [1, 4, 9])
async def test_two_users_get_equal_shares_though_one_came_with_more(world: World, size: int) -> None:
    await world.submit_many(300, user="ada")
    await world.submit_many(60, user="bob")
    started: list[ClaimedJob] = []
    while len(started) < 100:
        started += await world.claim(size)
    shares = Counter(job.user for job in started)
    assert abs(shares["ada"] - shares["bob"]) <= size


async def test_a_thousand_users_with_one_job_each_are_all_served_before_anyones_second(world: World) -> None:
    for i in range(200):
        await world.submit_many(2, user=f"user-{i:03}")
    started: list[ClaimedJob] = []
    while len(started) < 200:
        started += await world.claim(8)
    assert max(Counter(job.user for job in started).values()) == 1


async def test_a_user_gains_nothing_by_having_been_idle(world: World) -> None:
    await world.submit(user="idle")
    await world.run_all()
    await world.submit_many(100, user="busy")
    for _ in range(50):
        await world.claim_one()
    await world.submit_many(40, user="idle")
    shares = Counter([(await world.claim_one()).user for _ in range(20)])
    assert abs(shares["idle"] - shares["busy"]) <= 1


@pytest.mark.parametrize(("steady", "flood"), [("a-steady", "b-flood"), ("b-steady", "a-flood")])
async def test_a_user_who_submits_one_job_after_the_other_does_not_stop_anothers_flood(
    world: World, steady: str, flood: str
) -> None:
    await world.submit_many(100, user=flood)
    await world.submit(user=steady)
    shares: Counter[str] = Counter()
    for _ in range(40):
        job = await world.claim_one()
        shares[job.user] += 1
        await world.complete(job)
        if job.user == steady:
            await world.submit(user=steady)
    assert abs(shares[steady] - shares[flood]) <= 2


async def test_a_user_without_work_leaves_nothing_behind(world: World) -> None:
    before = None
    for user in ("ada", "bob"):
        await world.submit_many(3, user=user)
        await world.run_all(2)
        left = {key for key in await world.keys() if not key.startswith("job:")}
        assert before in (None, left)
        before = left
        assert not [key for key in left if user in key or key.endswith(":users")]


# -- what must not be run


async def test_a_job_whose_life_ended_while_it_waited_is_not_given_but_expires(world: World) -> None:
    dead, alive = await world.submit(), await world.submit(1)
    await world.outlive(dead)
    assert [job.id for job in await world.claim(5)] == [alive]
    assert await world.state(dead) == "expired"
    error = (await world.results.record(dead)).error
    assert error is not None
    assert error.code == "expired"
    assert await world.depth() == 0
    assert await world.entries() == 0


async def test_a_claim_over_thousands_of_expired_jobs_still_works(world: World) -> None:
    many = 4500 if world.kind == "redis" else 1500
    dead = await world.submit_many(many)
    await world.outlive(*dead)
    alive = await world.submit()
    assert [job.id for job in await world.claim(many)] == [alive]
    assert await world.depth() == 0
    assert {await world.state(job_id) for job_id in dead[::500]} == {"expired"}


async def test_one_claim_looks_at_a_bounded_number_of_expired_jobs_and_rings_for_the_rest(world: World) -> None:
    dead = await world.submit_many(1500)
    await world.outlive(*dead)
    await world.queue.wait_for_bell(QUEUE)
    assert await world.claim(1) == []
    assert 400 < await world.depth() < 600
    assert await world.queue.wait_for_bell(QUEUE)
    assert await world.claim(1) == []
    assert await world.depth() == 0


async def test_an_entry_without_a_record_is_parked_and_kills_nobody(world: World) -> None:
    orphan, alive = await world.submit(), await world.submit(1)
    await world.redis.delete(world.job_key(orphan))
    assert [job.id for job in await world.claim(5)] == [alive]
    (parked,) = await world.results.parked()
    assert orphan in parked.id
    assert parked.queue == QUEUE
    assert "no record" in parked.reason
    assert await world.depth() == 0
    assert await world.entries() == 0


async def test_a_returned_job_without_a_record_stops_nobody(world: World) -> None:
    await world.submit_many(2)
    first, second = await world.claim(2)
    await world.release(first)
    await world.release(second)
    await world.redis.delete(world.job_key(first.id))
    assert [job.id for job in await world.claim(5)] == [second.id]
    assert await world.claim(5) == []
    assert await world.depth() == 0


async def test_a_running_job_of_a_deleted_stream_still_commits(world: World) -> None:
    await world.submit_many(2)
    job = await world.claim_one()
    await world.redis.delete(world.stream())
    assert await world.complete(job) == ["stored"]
    assert await world.claim(5) == []


async def test_a_rescued_job_of_a_deleted_stream_runs_again(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    await world.redis.delete(world.stream())
    await world.rescue(job)
    again = await world.claim_one()
    assert (again.id, again.claims) == (job.id, 2)
    assert await world.complete(again) == ["stored"]
    assert await world.redis.exists(world.stream()) == 0


async def test_a_waiting_job_of_a_deleted_stream_expires_at_the_latest(world: World) -> None:
    job_id = await world.submit()
    await world.redis.delete(world.stream())
    assert await world.claim() == []
    assert await world.depth() == 0
    await world.expire(job_id)
    assert await world.state(job_id) == "expired"
    await world.claim()
    assert await world.depth() == 0


async def test_forgotten_scripts_are_loaded_again(world: World) -> None:
    await world.submit()
    await world.redis.script_flush()
    job = await world.claim_one()
    await world.redis.script_flush()
    assert await world.complete(job) == ["stored"]


@pytest.mark.parametrize("garbage", [b"not JSON", b'{"input":[]}', b'{"input":{},"v":99}', b"\xff\xfe", b""])
async def test_garbage_in_a_record_reaches_the_worker_as_a_readable_error(world: World, garbage: bytes) -> None:
    broken, sound = await world.submit(), await world.submit(1)
    await execute(world.redis, "HSET", world.job_key(broken), "work", garbage)
    jobs = await world.claim(2)
    assert [job.id for job in jobs] == [broken, sound]
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        _ = jobs[0].spec
    assert jobs[1].spec == spec(1)


async def test_a_full_claim_passes_the_bell_on_and_a_short_one_does_not(world: World) -> None:
    await world.submit_many(3)
    await world.queue.wait_for_bell(QUEUE)
    await world.claim(2)
    assert await world.queue.wait_for_bell(QUEUE)
    await world.claim(2)
    assert await world.length(f"{world.q}bell") == 0


async def test_an_idle_worker_waits_no_longer_than_the_settings_say(make_world: MakeWorld) -> None:
    world = make_world(bell_timeout_s=0.05)
    assert not await world.queue.wait_for_bell(QUEUE)
    assert await world.queue.next_stop(QUEUE, "worker-1") is None


async def test_a_worker_that_left_is_not_listed_and_passes_the_bell_on(world: World) -> None:
    await world.renew(worker="worker-1")
    await world.renew(worker="worker-2")
    assert [about["id"] for about in await world.results.workers(QUEUE)] == ["worker-1", "worker-2"]
    await world.queue.leave(QUEUE, "worker-1")
    assert [about["id"] for about in await world.results.workers(QUEUE)] == ["worker-2"]
    assert await world.length(f"{world.q}bell") == 1
    assert not [key for key in await world.keys() if "worker-1" in key]


async def test_a_queue_is_empty_when_nothing_waits_or_runs(world: World) -> None:
    assert await world.queue.is_empty(QUEUE)
    await world.submit()
    assert not await world.queue.is_empty(QUEUE)
    job = await world.claim_one()
    assert not await world.queue.is_empty(QUEUE)
    await world.complete(job)
    assert await world.queue.is_empty(QUEUE)
