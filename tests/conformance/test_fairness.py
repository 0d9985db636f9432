"""Fairness: each owner's part of the machines, in cost and by weight."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from common.jobs import ClaimedJob
from tests.conformance.world import QUEUE, World, ended, users


async def serve(world: World, jobs: int, cost: Callable[[ClaimedJob], int], slots: int = 1) -> Counter[str]:
    """Run so many jobs, `slots` at a time, and say what each user's cost."""
    spent: Counter[str] = Counter()
    for _ in range(jobs // slots):
        claimed = await world.claim(slots)
        for job in claimed:
            spent[job.user] += cost(job)
        await world.commit(*(ended(job, cost(job)) for job in claimed))
    return spent


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
