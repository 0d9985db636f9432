"""What those who wait are told: their place, why, and until when; and how that is held against what came."""

from __future__ import annotations

import itertools
import random

import pytest

from common.eta import Forecast
from common.jobs import JobRecord, encode
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome
from common.scripts import execute, run
from tests.conformance.world import QUEUE, World
from tests.unit.simulated_queue import Learnt


async def beat(world: World, slots: int, worker: str = "worker-1") -> None:
    """Beat as a worker with so many slots does."""
    await world.queue.renew(QUEUE, worker, encode({"id": worker, "slots": slots, "takes": slots}), [])


async def reason(world: World, job_id: str) -> tuple[str | None, str | None]:
    """Why a job waits: the code, and the words."""
    record = await world.results.record(job_id)
    return record.waiting_code, record.waiting_for


async def history_of_runs(world: World, jobs: int = 20) -> None:
    """Let the queue learn how long its jobs run."""
    await world.submit_many(jobs, user="earlier")
    await world.run_all()


async def kept(world: World, field: str) -> str | None:
    """What the queue keeps under a name."""
    found = await execute(world.redis, "HGET", f"{world.q}meta", field)
    return found.decode() if found else None


async def counts(world: World) -> tuple[int, int]:
    """Forecasts that were judged, and of them those that were kept."""
    (stats,) = [one for one in await world.results.queues() if one.queue == QUEUE]
    return stats.counts.get("eta:total", 0), stats.counts.get("eta:covered", 0)


# -- places


@pytest.mark.parametrize("seed", range(5))
async def test_jobs_start_in_the_order_of_their_positions(world: World, seed: int) -> None:
    """Exactly, when none comes and none goes: users of all weights with jobs in several lanes, of all sizes, some under
    way and some given back."""
    chance = random.Random(seed)
    await world.renew()
    policies = Policies(world.redis, world.settings)
    for number, weight in enumerate((1, 2, 0.5, 7), 1):
        await policies.set_share(f"user-{number}", Policy(weight=weight))
    for _ in range(12):
        lane = chance.choice(("high", "normal", "normal", "low"))
        for _ in range(chance.randint(1, 7)):
            units = chance.choice((0, 10, 100, 1000)) if seed % 2 else 0
            await world.submit(user=f"user-{chance.randint(1, 4)}", priority=lane, units=units)
    for _ in range(chance.randint(0, 9)):
        job = await world.claim_one()
        if chance.random() < 0.2:
            await world.release(job)
        else:
            cost = chance.randint(1, 900)
            used = encode({"total_tokens": cost * 2})
            await world.commit(Outcome(job, "completed", job.seq, b"{}", used, gpu_ms=cost))
    for _ in range(3):
        await world.submit(user=f"user-{chance.randint(1, 6)}", priority=chance.choice(("high", "normal", "low")))
    waiting = await queued(world)
    told = {record.id: (await world.results.record(record.id)).queue_position for record in waiting}
    started = [(await world.claim_one()).id for _ in waiting]
    assert {job_id: told[job_id] for job_id in started} == {job_id: i for i, job_id in enumerate(started, 1)}


async def queued(world: World) -> list[JobRecord]:
    """The records of the jobs that wait."""
    return [one for one in (await world.results.list_jobs(limit=200)).records if one.status == "queued"]


async def test_a_place_behind_more_than_can_be_looked_at_is_an_estimate(world: World) -> None:
    await world.renew()
    ids = await world.submit_many(2_500)
    for place in (0, 999, 1_300, 2_499):
        told = (await world.results.record(ids[place])).queue_position
        assert told is not None
        assert abs(told - place - 1) <= (0 if place != 1_300 else 250)


# -- reasons


async def test_a_reason_has_a_code_and_words(world: World) -> None:
    first = await world.submit(user="ada")
    assert await reason(world, first) == ("no_worker", "a worker: none is running for this model")
    await world.queue.loading(QUEUE, "worker-1", 30)
    assert await reason(world, first) == ("loading", "its model, which is being loaded")
    await world.queue.loading(QUEUE, "worker-1", 0)
    assert (await reason(world, first))[0] == "no_worker"
    await world.renew()
    second = await world.submit(user="ada")
    other = await world.submit(user="bob")
    later = await world.submit(delay_s=100)
    assert await reason(world, first) == ("slot", "a free slot")
    assert await reason(world, second) == ("turn", "2 jobs before it, 1 of them this user's")
    assert await reason(world, other) == ("turn", "1 job before it, 0 of them this user's")
    assert (await reason(world, later))[0] == "scheduled"
    await world.complete(await world.claim_one())
    assert (await reason(world, second))[0] == "share"  # ada has had a job, bob none
    job = await world.claim_one()
    await world.fail(job, retryable=True, delay_s=60)
    assert (await reason(world, job.id))[0] == "retry_pause"
    assert await reason(world, second) == ("slot", "a free slot")
    low = await world.submit(priority="low")
    assert (await reason(world, low))[0] == "higher_lane"


async def test_a_running_or_finished_job_waits_for_nothing(world: World) -> None:
    await world.renew()
    job_id = await world.submit()
    job = await world.claim_one()
    assert await reason(world, job_id) == (None, None)
    await world.complete(job)
    assert await reason(world, job_id) == (None, None)
    assert (await world.results.record(job_id)).eta is None


# -- when it will be done


async def test_nothing_is_foretold_before_a_job_has_run_or_while_nobody_works(world: World) -> None:
    job_id = await world.submit()
    await world.renew()
    assert (await world.results.record(job_id)).eta is None
    await history_of_runs(world)
    waiting = await world.submit()
    assert (await world.results.record(waiting)).eta is not None
    await world.queue.leave(QUEUE, "worker-1")
    world.results.waiting._standings.clear()
    assert (await world.results.record(waiting)).eta is None


async def test_all_jobs_that_have_not_ended_have_an_eta(world: World) -> None:
    await beat(world, slots=2)
    await history_of_runs(world)
    waiting = await world.submit_many(3)
    await world.claim_one()
    scheduled = await world.submit(delay_s=100)
    for job_id in (*waiting, scheduled):
        eta = (await world.results.record(job_id)).eta
        assert eta is not None
        assert 0 < eta.p50 <= eta.p90
    eta = (await world.results.record(scheduled)).eta
    assert eta is not None
    assert 95 < eta.p50 < 105


async def test_more_jobs_before_it_mean_a_later_end_and_more_slots_a_sooner_one(world: World) -> None:
    await beat(world, slots=1)
    await history_of_runs(world)
    await execute(world.redis, "HSET", f"{world.q}meta", "runs", "200 0 0 5000 0 0 0.04 5000 0")
    ids = await world.submit_many(40)
    near, far = [(await world.results.record(ids[i])).eta for i in (3, 39)]
    await beat(world, slots=8)
    sooner = (await world.results.record(ids[39])).eta
    assert near is not None
    assert far is not None
    assert sooner is not None
    assert 15 < near.p50 < 30  # 3 jobs of 5 s before it, and its own
    assert 170 < far.p50 < 230
    assert sooner.p50 < far.p50 / 5


async def test_units_tell_long_jobs_from_short_ones(world: World) -> None:
    await beat(world, slots=1)
    await world.submit()
    await world.run_all()
    await execute(world.redis, "HSET", f"{world.q}meta", "runs", "200 500 400000 5500 4600000 0 0.04 500 10")
    short, long = await world.submit(units=10, user="ada"), await world.submit(units=2_000, user="bob")
    ada, bob = (await world.results.record(short)).eta, (await world.results.record(long)).eta
    assert ada is not None
    assert bob is not None
    assert ada.p50 < 1
    assert 18 < bob.p50 < 24


# -- learnt and judged


async def test_run_times_are_learnt_as_jobs_end(world: World) -> None:
    """The script's numbers are those of the simulation, which the estimator's own tests stand on."""
    learnt = Learnt()
    for units in (100, 5, 40, 0, 900, 33, 71, 8, 250, 4):
        await world.submit(units=units)
        job = await world.claim_one()
        await world.complete(job)
        record = await world.results.record(job.id)
        learnt.learn(units, record.run_ms or 0)
    found = await kept(world, "runs")
    assert found is not None
    assert list(map(float, found.split())) == pytest.approx(learnt.pace, rel=1e-5, abs=1e-6)


async def test_what_was_foretold_is_judged_when_the_job_ends(world: World) -> None:
    learnt = Learnt()
    await beat(world, slots=1)
    for number, (half, told) in enumerate(itertools.product((1, 60_000), (1, 90_000)), 1):
        job_id = await world.submit()
        now = int((await execute(world.redis, "TIME"))[0]) * 1000 - 5_000
        forecast = Forecast("n2", now, half, half * 2, half, told)
        await run(world.redis, "foresee", world.prefix, job_id, forecast.note)
        await world.complete(await world.claim_one())
        ended = (await world.results.record(job_id)).finished_at
        learnt.judge(forecast, (ended or 0) * 1000)
        assert await counts(world) == (number, learnt.covered)
    found = await kept(world, "eta:n2")
    assert found is not None
    assert list(map(float, found.split())) == pytest.approx(learnt.factors["n2"], rel=1e-4)


async def test_only_the_first_forecast_of_a_job_counts(world: World) -> None:
    await beat(world, slots=1)
    await history_of_runs(world)
    job_id = await world.submit()
    await world.results.record(job_id)
    first = await execute(world.redis, "HGET", world.job_key(job_id), "eta")
    assert first.startswith(b"n0 ")
    await world.results.record(job_id)
    await run(world.redis, "foresee", world.prefix, job_id, "n1 1 1 1 1")
    assert await execute(world.redis, "HGET", world.job_key(job_id), "eta") == first
    await world.complete(await world.claim_one())
    assert await counts(world) in ((1, 1), (1, 0))


async def test_a_forecast_of_a_job_that_has_ended_meanwhile_counts_once(world: World) -> None:
    job_id = await world.submit()
    await world.complete(await world.claim_one())
    for _ in range(2):
        await run(world.redis, "foresee", world.prefix, job_id, "n0 1 1 1 1")
    assert await counts(world) == (1, 0)


async def test_a_forecast_brings_no_erased_job_back_and_a_cancelled_one_is_not_judged(world: World) -> None:
    gone, cancelled = await world.submit_many(2)
    await world.queue.erase(gone)
    await run(world.redis, "foresee", world.prefix, gone, "n0 1 1 1 1", cancelled, "n0 1 1 1 1")
    await world.queue.cancel(cancelled)
    assert not await world.redis.exists(world.job_key(gone))
    assert await counts(world) == (0, 0)


async def test_a_job_that_had_to_be_tried_again_is_judged_by_its_last_end(world: World) -> None:
    await world.renew()
    job_id = await world.submit()
    await run(world.redis, "foresee", world.prefix, job_id, "n0 1 1 1 1")
    await world.fail(await world.claim_one(), retryable=True)
    assert await counts(world) == (0, 0)
    await world.promote(job_id)
    await world.complete(await world.claim_one())
    assert await counts(world) == (1, 0)
