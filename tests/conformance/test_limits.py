"""Limits where jobs are submitted: what is let through, what it takes, and what comes back when a job ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.errors import IdempotencyMismatch, LimitReached, QueueFull
from common.jobs import JobResult, Submitted
from common.limits import Left, Policy
from common.policies import Policies
from common.queue import Key, Outcome
from tests.conformance.world import MakeWorld, World, spec

KEY = "k7"
RESULT = JobResult({"text": "an answer"}, {"prompt_tokens": 20, "completion_tokens": 30})


async def limit(world: World, *texts: str, key: str = KEY) -> None:
    """From now on the key has these limits."""
    await Policies(world.redis, world.settings).set_door(key, Policy.parse(texts))


async def submit(world: World, key: str = KEY, **fields: Any) -> Submitted:
    """Submit a job of the key."""
    return await world.queue.submit(spec(api_key=key, **fields))


async def refused(world: World, **fields: Any) -> LimitReached:
    """Submit a job, which must be refused."""
    with pytest.raises(LimitReached) as error:
        await submit(world, **fields)
    return error.value


async def left(world: World, what: str = "tokens") -> float:
    """What is left of the key's first such limit, by a replay, which takes nothing."""
    one = spec(api_key=KEY)
    again = await world.queue.submit_each([one], [Key("look", "")])
    assert isinstance(again[0], Submitted)
    return next(one.left for one in again[0].limits if one.what == what)


async def looked_at(world: World) -> None:
    """Submit the job whose replays `left` looks by."""
    await world.queue.submit(spec(api_key=KEY, priority="low"), Key("look", ""))


async def commit(world: World, result: JobResult = RESULT) -> None:
    """Claim the next job and commit a result."""
    job = await world.claim_one()
    assert await world.commit(Outcome.done(job, job.seq, result)) == ["stored"]


async def test_a_key_gets_its_burst_at_once_and_no_request_more(world: World) -> None:
    await limit(world, "requests=60/60s,burst=10")
    answers = await world.queue.submit_each([spec(i, api_key=KEY) for i in range(200)])
    accepted = [one for one in answers if isinstance(one, Submitted)]
    over = [one for one in answers if isinstance(one, LimitReached)]
    assert (len(accepted), len(over)) == (10, 190)
    assert {one.limits[0].left for one in accepted} == {0}
    assert all(one.violated == ("requests-60s",) and one.retry_after_s == pytest.approx(1, abs=0.01) for one in over)
    assert over[0].limits == (Left("requests", 60, 60, 0, 10_000),)
    assert over[0].retryable
    assert await world.depth() == 10


async def test_keys_and_those_without_one_do_not_share_a_limit(world: World) -> None:
    await limit(world, "requests=1/1h")
    await limit(world, "requests=1/1h", key="other")
    await submit(world)
    assert (await refused(world)).violated == ("requests-3600s",)
    await submit(world, key="other")
    assert [(await submit(world, key="")).limits for _ in range(3)] == [()] * 3


async def test_a_limit_that_is_used_up_is_open_again_when_it_said(world: World) -> None:
    await limit(world, "requests=50/1s,burst=1")
    await submit(world)
    wait_s = (await refused(world)).retry_after_s
    assert wait_s is not None
    assert 0 < wait_s <= 0.02
    await asyncio.sleep(wait_s)
    await submit(world)


async def test_limits_are_taken_all_or_none(world: World) -> None:
    await limit(world, "requests=10/1h", "tokens=100/1h", "tokens=1000/1d")
    await submit(world, units=80)
    error = await refused(world, units=30)
    assert error.violated == ("tokens-3600s",)
    assert [one.left for one in error.limits] == [9, 20, 920]
    await submit(world, units=20)
    error = await refused(world, units=80)
    assert error.retry_after_s == pytest.approx(2880, abs=1)
    assert not error.retryable


async def test_a_job_that_can_never_fit_is_told_so_at_once(world: World) -> None:
    await limit(world, "tokens=100/1m,burst=50", "requests=10/1h")
    error = await refused(world, units=51)
    assert (error.retry_after_s, error.retryable, error.violated) == (None, False, ("tokens-60s",))
    assert "this needs 51 tokens, and limit tokens-60s gives at most 50 at once" in str(error)
    assert [one.left for one in error.limits] == [50, 10]


async def test_what_is_accepted_already_or_refused_for_another_reason_takes_nothing(make_world: MakeWorld) -> None:
    world = make_world(max_depth=2)
    await limit(world, "requests=10/1h")
    first = await world.queue.submit(spec(api_key=KEY), Key("k", "a"))
    again = await world.queue.submit(spec(api_key=KEY), Key("k", "a"))
    assert (again.id, again.created, again.limits[0].left) == (first.id, False, 9)
    with pytest.raises(IdempotencyMismatch):
        await world.queue.submit(spec(api_key=KEY), Key("k", "b"))
    await submit(world)
    with pytest.raises(QueueFull):
        await submit(world)
    await commit(world)
    assert (await submit(world)).limits[0].left == 7


async def test_audio_counts_in_seconds_and_cost_in_money(world: World) -> None:
    await limit(world, "audio_seconds=60/1h", "cost=0.5/1d", "tokens=10/1h")
    answer = await submit(world, kind="transcription", units=40, cost_micros=200_000)
    assert [one.left for one in answer.limits] == [20, 0.3, 10]
    error = await refused(world, kind="transcription", units=21)
    assert error.violated == ("audio_seconds-3600s",)
    error = await refused(world, units=1, cost_micros=300_001)
    assert error.violated == ("cost-86400s",)
    await submit(world, units=1, cost_micros=300_000)


async def test_what_a_job_did_not_use_comes_back_with_its_result(world: World) -> None:
    await limit(world, "tokens=1000/1d", "cost=1/1d")
    await submit(world, units=500, cost_micros=400_000)
    await looked_at(world)
    assert await left(world) == 500
    await commit(world, JobResult({}, {**RESULT.usage, "cost_micros": 100_000, "cost_currency": "EUR"}))
    assert await left(world) == 950
    assert await left(world, "cost") == pytest.approx(0.9, abs=1e-4)


async def test_what_a_job_used_beyond_its_estimate_is_taken_afterwards(world: World) -> None:
    await limit(world, "tokens=100/1d")
    await submit(world, units=10)
    await looked_at(world)
    await commit(world, JobResult({}, {"prompt_tokens": 100, "completion_tokens": 50}))
    assert await left(world) == 0
    error = await refused(world, units=1)
    assert error.retry_after_s == pytest.approx(51 * 864, abs=2)


@pytest.mark.parametrize("end", ["cancel", "expire", "erase"])
async def test_a_waiting_job_that_ends_gives_all_back_but_its_request(world: World, end: str) -> None:
    await limit(world, "tokens=1000/1d", "requests=10/1d")
    job = await submit(world, units=500)
    await looked_at(world)
    if end == "expire":
        await world.expire(job.id)
    else:
        await getattr(world.queue, end)(job.id)
    assert (await left(world), await left(world, "requests")) == (1000, 8)


async def test_a_run_that_is_stopped_keeps_what_it_may_have_used(world: World) -> None:
    await limit(world, "tokens=1000/1d")
    job = await submit(world, units=500)
    await looked_at(world)
    await world.claim_one()
    await world.queue.cancel(job.id)
    assert await left(world) == 500


@pytest.mark.parametrize(("begun", "after"), [(False, 1000), (True, 500)])
async def test_a_failed_job_gives_back_what_it_took_unless_it_had_begun_to_answer(
    world: World, begun: bool, after: float
) -> None:
    await limit(world, "tokens=1000/1d")
    await submit(world, units=500)
    await looked_at(world)
    job = await world.claim_one()
    if begun:
        await world.emit(job, "word")
    await world.fail(job, retryable=False)
    assert await left(world) == after


async def test_a_job_that_runs_again_is_held_once_and_settled_once(world: World) -> None:
    await limit(world, "tokens=1000/1d", "requests=10/1d")
    await submit(world, units=500)
    await looked_at(world)
    job = await world.claim_one()
    await world.fail(job, retryable=True)
    await world.promote(job.id)
    assert await left(world) == 500
    job = await world.claim_one()
    await world.release(job)
    job = await world.claim_one()
    await world.rescue(job)
    job = await world.claim_one()
    outcome = Outcome.done(job, job.seq, RESULT)
    assert [await world.commit(outcome) for _ in range(3)] == [["stored"], ["mine"], ["mine"]]
    assert (await left(world), await left(world, "requests")) == (950, 8)


async def test_a_job_that_is_asked_for_again_needs_what_it_needed(world: World) -> None:
    await limit(world, "tokens=1000/1d", "cost=1/1d")
    job = await submit(world, units=100, cost_micros=250_000)
    await world.fail(await world.claim_one(), retryable=False)
    again = await world.queue.retry(job.id)
    assert [round(one.left, 2) for one in again.limits] == [900, 0.75]


async def test_limits_that_change_or_go_do_not_give_back_what_they_did_not_take(world: World) -> None:
    await limit(world, "tokens=1000/1d")
    await submit(world, units=500)
    await limit(world, "tokens=1000/1d", "tokens=100/1h")
    await looked_at(world)
    await submit(world, units=90)
    await commit(world)
    hour = (await world.queue.submit(spec(api_key=KEY), Key("look", ""))).limits[1]
    assert (hour.window_s, hour.left) == (3600, 10)
    await limit(world)
    await commit(world, JobResult({}, {"prompt_tokens": 1}))
    assert (await submit(world)).limits == ()


async def test_so_many_jobs_of_a_key_may_wait(world: World) -> None:
    await limit(world, "waiting=3")
    ids = [(await submit(world)).id for _ in range(2)] + [(await submit(world, delay_s=100)).id]
    error = await refused(world)
    assert (error.violated, error.retryable) == (("waiting",), True)
    job = await world.claim_one()
    await submit(world)
    await world.release(job)  # it waits again, and that is one too many
    await refused(world)
    await world.queue.cancel(ids[1])
    await refused(world)
    await world.queue.cancel(ids[2])
    await submit(world)
    await refused(world)
    await world.run_all()
    assert await world.redis.exists(f"{world.prefix}waits:{KEY}") == 0


async def test_jobs_that_were_lost_do_not_count_as_waiting_for_ever(world: World) -> None:
    await limit(world, "waiting=2")
    ids = [(await submit(world)).id for _ in range(2)]
    await world.redis.delete(*map(world.job_key, ids))
    await submit(world)
    await submit(world)
    await refused(world)


async def test_refusals_are_counted_by_limit(world: World) -> None:
    await limit(world, "requests=1/1h", "tokens=10/1h")
    await submit(world, units=10)
    await refused(world, units=10)
    await refused(world)
    (stats,) = await world.results.queues()
    assert {n: c for n, c in stats.counts.items() if n.startswith("limited:")} == {
        "limited:requests-3600s": 2,
        "limited:tokens-3600s": 1,
    }


async def test_a_bucket_is_gone_when_it_has_drained(world: World) -> None:
    await limit(world, "requests=1000/1s", "tokens=1000/1s")
    job = await submit(world, units=500)
    bucket = f"{world.prefix}bucket:k:{KEY}"
    assert 0 < await world.ttl_ms(bucket) <= 501
    await world.queue.cancel(job.id)
    assert await world.ttl_ms(bucket) <= 2
