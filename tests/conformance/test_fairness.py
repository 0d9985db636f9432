"""Fairness: each owner's part of the machines, in cost and by weight, and what bounds it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from common.jobs import ClaimedJob, JobRecord, encode
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome
from common.states import State
from tests.conformance.world import QUEUE, MakeWorld, World, spec


@pytest.fixture
def share(world: World) -> Callable[..., Awaitable[None]]:
    """Sets an owner's part: `await share("ada", "weight=2", "in_progress=3")`."""
    policies = Policies(world.redis, world.settings)

    async def set_share(owner: str, *limits: str) -> None:
        await policies.set_share(owner, Policy.parse(limits))

    return set_share


def ended(job: ClaimedJob, gpu_ms: int = 0, units: int = 0) -> Outcome:
    """A run that completed, at this cost."""
    return Outcome(job, "completed", job.seq, b"{}", encode({"total_tokens": units}), gpu_ms=gpu_ms)


async def serve(world: World, jobs: int, cost: Callable[[ClaimedJob], int], slots: int = 1) -> Counter[str]:
    """Run so many jobs, `slots` at a time, and say what each user's cost."""
    spent: Counter[str] = Counter()
    for _ in range(jobs // slots):
        claimed = await world.claim(slots)
        for job in claimed:
            spent[job.user] += cost(job)
        await world.commit(*(ended(job, cost(job)) for job in claimed))
    return spent


def users(jobs: list[ClaimedJob]) -> str:
    """The users' first letters, in order."""
    return "".join(job.user[0] for job in jobs)


# -- parts by weight and cost


@pytest.mark.parametrize("size", [1, 3, 12])
async def test_owners_get_jobs_in_proportion_to_their_weights(
    world: World, share: Callable[..., Awaitable[None]], size: int
) -> None:
    await share("ada", "weight=3")
    await share("bob", "weight=2")
    for user in ("ada", "bob", "cy"):
        await world.submit_many(40, user=user)
    taken: list[ClaimedJob] = []
    while len(taken) < 36:
        taken += await world.claim(size)
    assert Counter(users(taken)) == {"a": 18, "b": 12, "c": 6}


async def test_who_asks_for_larger_jobs_gets_fewer_of_them(world: World) -> None:
    await world.submit_many(300, user="big")
    await world.submit_many(300, user="small")
    spent = await serve(world, 220, lambda job: 100 if job.user == "big" else 10)
    assert abs(spent["big"] - spent["small"]) <= 200


async def test_what_a_job_is_thought_to_cost_goes_by_its_units_and_what_the_queue_measured(world: World) -> None:
    await world.submit(units=100)
    await world.commit(ended(await world.claim_one(), gpu_ms=200, units=100))
    await world.submit_many(20, user="big", units=500)
    await world.submit_many(20, user="small", units=100)
    # All claimed at once: nothing is known but what they ask for.
    assert Counter(users(await world.claim(12))) == {"b": 2, "s": 10}


async def test_what_was_charged_too_much_is_given_back_when_the_job_ends(world: World) -> None:
    await world.submit(units=100)
    await world.commit(ended(await world.claim_one(), gpu_ms=200, units=100))
    await world.submit_many(20, user="ada", units=10_000)
    await world.submit_many(20, user="bob", units=100)
    first = await world.claim(2)
    assert users(first) == "ab"
    await world.commit(*(ended(job, gpu_ms=200, units=100) for job in first))
    assert Counter(users(await world.claim(2))) == {"a": 1, "b": 1}


async def test_an_owner_who_leaves_and_returns_does_not_get_ahead(world: World) -> None:
    await world.submit_many(60, user="ada")
    turns = 0
    for _ in range(20):
        await world.submit(user="bob")
        while True:
            job = await world.claim_one()
            turns += job.user == "ada"
            await world.commit(ended(job))
            if job.user == "bob":
                break
    assert 19 <= turns <= 21


async def test_an_owner_who_was_away_is_not_paid_for_it(world: World) -> None:
    await world.submit_many(100, user="ada")
    await world.run_some(50)
    await world.submit_many(100, user="bob")
    assert Counter(users(await world.claim(20))) == {"a": 10, "b": 10}


async def test_interactive_and_batch_of_one_owner_share_his_part(world: World) -> None:
    for user in ("ada", "bob"):
        await world.submit_many(200, user=user, priority="low")
    await world.submit_many(200, user="ada", priority="high")
    jobs = await world.claim(85)
    lanes = Counter((job.user, job.lane) for job in jobs)
    # Nobody else wants the high lane, so ada has it; of the low one she gets no more while bob waits there.
    assert lanes["ada", "high"] >= 80
    assert lanes["ada", "low"] <= 1


async def test_a_job_that_was_given_back_is_paid_for_once(world: World) -> None:
    for user in ("ada", "bob"):
        await world.submit_many(30, user=user)
    first = await world.claim(1)
    for _ in range(5):
        await world.release(first[0])
        first = await world.claim(1)
        assert first[0].user == "ada"
    assert Counter(users(await world.claim(19))) == {"a": 9, "b": 10}


async def test_a_cancelled_run_costs_no_more_than_the_time_it_had(world: World) -> None:
    await world.submit(units=100)
    await world.commit(ended(await world.claim_one(), gpu_ms=200_000, units=100))
    await world.submit_many(20, user="ada", units=1000)
    await world.submit_many(20, user="bob", units=100)
    (job,) = await world.claim(1)
    assert job.user == "ada"
    await world.queue.cancel(job.id)
    assert Counter(users(await world.claim(2))) == {"a": 1, "b": 1}


async def test_the_bound_of_fair_queueing_holds_at_every_moment(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    """For two who always wait: |W_i/w_i - W_j/w_j| <= c_i/w_i + c_j/w_j, c the largest cost of a job of theirs."""
    weights = {f"user-{n}": n for n in (1, 2, 5, 10)}
    rng = random.Random(7)
    costs: dict[str, int] = {}
    for user, weight in weights.items():
        await share(user, f"weight={weight}")
        for job_id in await world.submit_many(120, user=user):
            costs[job_id] = rng.choice((1, 10, 100))
    spent: Counter[str] = Counter()
    while min((await world.results.queues())[0].users_waiting, 4) == 4:
        job = await world.claim_one()
        await world.commit(ended(job, costs[job.id]))
        spent[job.user] += costs[job.id]
        parts = {user: spent[user] / weight for user, weight in weights.items()}
        for one in weights:
            for other in weights:
                assert abs(parts[one] - parts[other]) <= 100 / weights[one] + 100 / weights[other]


async def learn_cost(world: World, gpu_ms: int) -> None:
    """Let the queue know what its jobs cost."""
    await world.submit_many(4, user="known")
    await world.commit(*(ended(job, gpu_ms) for job in await world.claim(4)))


async def started(world: World, jobs: int) -> None:
    """As if so many had been started since the queue was empty: one goes in a row for 250 of them."""
    await world.redis.hset(f"{world.q}meta", "stretch", str(jobs))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("gpu_ms", "order"),
    [(0, "ab" * 12), (1, "a" * 8 + "b" * 8 + "a" * 8), (2, "ab" * 12)],
    ids=["unknown", "short", "long"],
)
async def test_only_of_jobs_that_are_known_to_be_short_some_go_in_a_row(world: World, gpu_ms: int, order: str) -> None:
    await learn_cost(world, gpu_ms)
    await started(world, 2_000)
    for user in ("ada", "bob"):
        await world.submit_many(40, user=user)
    assert users(await world.claim(24)) == order


async def test_a_turn_of_short_jobs_goes_by_weight_and_ends_with_what_the_owner_has(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    await learn_cost(world, 1)
    await started(world, 2_000)
    await share("bob", "weight=3")
    await world.submit_many(40, user="ada")
    await world.submit_many(40, user="bob")
    await world.submit_many(2, user="cy")
    assert users(await world.claim(22)) == "a" * 5 + "b" * 15 + "cc"


async def test_a_turn_of_short_jobs_ends_with_a_job_that_must_not_be_run(world: World) -> None:
    await learn_cost(world, 1)
    await started(world, 2_000)
    await world.submit_many(3, user="ada")
    dead = await world.submit(user="ada")
    await world.submit_many(20, user="ada")
    await world.submit_many(20, user="bob")
    await world.outlive(dead)
    assert users(await world.claim(20)) == "a" * 3 + "b" * 8 + "a" * 8 + "b"
    assert await world.state(dead) == "expired"


async def test_who_comes_while_another_has_a_turn_of_short_jobs_is_next(world: World) -> None:
    await learn_cost(world, 1)
    await started(world, 2_000)
    await world.submit_many(100, user="ada")
    assert users(await world.claim(5)) == "aaaaa"
    await world.submit(user="bob")
    assert users(await world.claim(3)) == "baa"


async def test_short_jobs_take_turns_one_by_one_when_the_queue_was_empty_and_the_longer_it_was_not_the_more(
    world: World,
) -> None:
    await learn_cost(world, 1)
    for user in ("ada", "bob"):
        await world.submit_many(620, user=user)
    order = "".join([users(await world.claim(60)) for _ in range(20)])
    assert order[:480] == "ab" * 240
    assert order[540:720] == "aabb" * 45
    assert order[840:900] == "aaabbb" * 10
    await world.claim(100)  # all of it
    for user in ("ada", "bob"):
        await world.submit_many(3, user=user)
    assert users(await world.claim(6)) == "ababab"


async def test_a_turn_of_short_jobs_is_not_cut_while_the_worker_has_room(world: World) -> None:
    await learn_cost(world, 1)
    await started(world, 2_000)

    async def claim(number: int, count: int, most: int) -> str:
        return users(await world.queue.claim(QUEUE, "another", count, number, most))

    await world.submit_many(30, user="ada")
    assert await claim(1, 3, 20) == "aaa"  # nobody else waits: there is no turn to end
    await world.submit_many(30, user="bob")
    assert await claim(2, 3, 20) == "b" * 8
    assert await claim(3, 3, 5) == "a" * 5  # no more than there is room for
    await world.submit_many(30, user="cy", priority="high")
    assert len(await claim(4, 10, 50)) == 10  # nor more than a lane's portion
    await started(world, 0)
    assert len(await claim(5, 3, 20)) == 3


async def test_ten_weights_get_their_parts_of_short_jobs_within_five_percent(
    world: World, share: Callable[..., Awaitable[None]]
) -> None:
    """After 2,000 jobs; at every claim from then on within that and one job."""
    await learn_cost(world, 1)
    for weight in range(1, 11):
        await share(f"user-{weight}", f"weight={weight}")
        await world.submit_many(80 * weight, user=f"user-{weight}")
    got: Counter[str] = Counter()
    while (total := sum(got.values())) < 4_000:
        jobs = await world.claim(25)
        got.update(job.user for job in jobs)
        await world.commit(*(ended(job) for job in jobs))
        if total + 25 >= 2_000:
            due = {n: (total + 25) * n / 55 for n in range(1, 11)}
            least = 0 if total + 25 == 2_000 else 1
            assert {n for n in due if abs(got[f"user-{n}"] - due[n]) > 0.05 * due[n] + least} == set()


@pytest.mark.parametrize("before", [0, 100_000])
async def test_the_bound_holds_with_short_jobs_at_every_moment(
    world: World, share: Callable[..., Awaitable[None]], before: int
) -> None:
    """As below, with for the largest so many jobs that cost the least as claims take of one owner in a row."""
    await learn_cost(world, 1)
    await started(world, before)
    rng = random.Random(7)
    weights = {f"user-{n}": n for n in range(1, 11)}
    for user, weight in weights.items():
        await share(user, f"weight={weight}")
        await world.submit_many(30 * weight, user=user)
    got: Counter[str] = Counter()
    while sum(got.values()) < 1_000:
        jobs = await world.claim(rng.choice((1, 3, 8, 33)))
        await world.commit(*(ended(job, rng.choice((0, 1))) for job in jobs))
        got.update(job.user for job in jobs)
        parts = {user: got[user] / weight for user, weight in weights.items()}
        # At most twice the mean's: no weight is so large here.
        most = min(64.0, 2 + (before + sum(got.values())) / 125)
        for one in weights:
            for other in weights:
                assert abs(parts[one] - parts[other]) <= most / weights[one] + most / weights[other]


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
