"""Help: when a worker of a fallback model gets a queue's jobs, which of them, and what they cost."""

from __future__ import annotations

import asyncio

import pytest

from common.jobs import ClaimedJob, JobResult
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome
from common.scripts import execute
from tests.conformance.world import QUEUE, World

AFTER_S = 30.0


async def help_out(
    world: World, count: int = 10, worker: str = "h@hosted", before: tuple[str, ...] = (), request: int | None = None
) -> list[ClaimedJob]:
    number = next(world.requests) if request is None else request
    return await world.queue.help(QUEUE, worker, count, number, AFTER_S, before)


async def older(world: World, count: int, user: str = "ada", lane: str = "normal") -> list[str]:
    """Submit jobs, and let them have waited for longer than the bound: their entries get older ids."""
    ids = [await world.submit(number, user=user, priority=lane) for number in range(count)]
    stream, now_ms = world.stream(user, lane), int((await world.redis.time())[0]) * 1000
    entries = await world.redis.xrange(stream)
    await world.redis.delete(stream)
    for number, (_, fields) in enumerate(entries):
        age_ms = int(AFTER_S * 1000) + 1000 if number >= len(entries) - count else 0
        await world.redis.xadd(stream, fields, id=f"{now_ms - age_ms}-{number + 1}")
    return ids


async def test_without_a_worker_of_its_own_a_queue_is_helped_at_once(world: World) -> None:
    ids = await world.submit_many(3)
    jobs = await help_out(world, 2)
    assert [job.id for job in jobs] == ids[:2]
    record = await world.results.record(ids[0])
    assert (record.status.value, record.worker, record.model, record.served_by) == (
        "in_progress", "h@hosted", "demo", "hosted",
    )  # fmt: skip


async def test_while_its_own_workers_live_only_as_many_are_taken_as_have_waited_too_long(world: World) -> None:
    await world.renew(worker="local")
    await world.submit_many(3, user="eve")
    assert await help_out(world) == []
    assert await world.depth() == 3
    await older(world, 2, "ada")
    await older(world, 1, "bob", "low")
    assert len(await help_out(world)) == 3, "in the queue's own order: the oldest of another user may be among them"
    assert await world.depth() == 3


async def test_no_more_are_taken_than_have_waited_too_long_or_are_wanted(world: World) -> None:
    await world.renew(worker="local")
    late = await older(world, 5)
    assert [job.id for job in await help_out(world, 2)] == late[:2]
    assert [job.id for job in await help_out(world, 10)] == late[2:]
    assert await help_out(world, 10) == []


async def test_a_job_given_back_waits_from_then_on(world: World) -> None:
    await world.renew(worker="local")
    await world.submit()
    await world.release(await world.claim_one("local"))
    assert await help_out(world) == []
    job = await world.claim_one("local")
    await world.release(job)
    history = (await execute(world.redis, "HGET", world.job_key(job.id), "history")).decode()
    aged = history[:-13] + str(int(history[-13:]) - 31_000)
    await execute(world.redis, "HSET", world.job_key(job.id), "history", aged)
    assert [one.id for one in await help_out(world)] == [job.id]


async def test_an_answer_that_was_begun_is_left_to_the_model_that_began_it(world: World) -> None:
    ids = await world.submit_many(4)
    begun, failed, released, _ = await world.claim(4, "local")
    await world.emit(begun, "one ")
    await world.emit(failed, "one ")
    await world.release(begun, begun.seq + 1)
    await world.release(released)
    await world.fail(failed, retryable=True)
    await world.promote(failed.id)
    assert await world.depth() == 3
    assert [job.id for job in await help_out(world)] == [released.id]
    assert await help_out(world) == []
    assert await world.depth() == 2
    assert {await world.state(begun.id), await world.state(failed.id)} == {"queued"}
    assert sorted(job.id for job in await world.claim(10, "local")) == sorted([begun.id, failed.id])
    assert await world.depth() == 0
    assert len(ids) == 4


async def test_a_begun_answer_that_a_helper_leaves_counts_for_nothing_of_its_owners_bound(world: World) -> None:
    await Policies(world.redis, world.settings).set_share("ada", Policy.parse(["in_progress=2"]))
    await world.submit_many(4, user="ada")
    begun, other = await world.claim(2, "local")
    await world.emit(begun, "one ")
    await world.fail(begun, retryable=True)
    await world.promote(begun.id)
    await world.complete(other)
    jobs = [*await help_out(world), *await world.claim(10, "local")]
    assert [job.id for job in jobs if job.id == begun.id] == [begun.id]
    assert len(jobs) == 3
    await world.complete(next(job for job in jobs if job.id == begun.id))
    running = await world.redis.hget(f"{world.prefix}standing", "running ada")  # type: ignore[misc]
    assert int(running) == 2  # his others


async def test_a_worker_that_fell_silent_counts_no_longer_and_one_that_came_back_does(world: World) -> None:
    await world.renew(worker="local")
    await world.submit_many(4)
    await world.redis.zadd(f"{world.q}workers", {"local": 1})
    assert len(await help_out(world, 1)) == 1
    await world.renew(worker="local")
    assert await help_out(world, 1) == []
    await world.queue.leave(QUEUE, "local")
    assert len(await help_out(world, 1)) == 1


async def test_the_second_in_the_chain_waits_for_the_first(world: World) -> None:
    await world.submit_many(4)
    await world.renew(worker="a@first")
    assert await help_out(world, 1, "b@second", ("first",)) == []
    assert len(await help_out(world, 1, "a@first")) == 1, "nobody waits for one behind him"
    await world.renew(worker="b@second")
    assert len(await help_out(world, 1, "a@first")) == 1
    await world.queue.leave(QUEUE, "a@first")
    assert len(await help_out(world, 1, "b@second", ("first",))) == 1


async def test_two_helpers_and_the_queues_own_never_get_the_same_job(world: World) -> None:
    ids = await world.submit_many(60)
    claims = [help_out(world, 3, f"h{number}@hosted") for number in range(15)]
    claims += [world.claim(3, f"local-{number}") for number in range(15)]
    taken = [job.id for jobs in await asyncio.gather(*claims) for job in jobs]
    assert sorted(taken) == sorted(ids)


async def test_the_same_request_number_returns_the_same_jobs(world: World) -> None:
    await world.submit_many(5)
    first = await help_out(world, 2, request=7)
    await world.renew(worker="local")
    assert await help_out(world, 2, request=7) == first
    assert await help_out(world, 2, request=8) == []


async def test_a_helper_whose_lease_ended_can_store_nothing(world: World) -> None:
    await world.submit()
    (helped,) = await help_out(world)
    await world.rescue(helped)
    own = await world.claim_one("local")
    assert own.id == helped.id
    assert await world.complete(helped) == ["lost"]
    assert await world.complete(own) == ["stored"]
    assert (await world.results.record(own.id)).served_by == "demo"


@pytest.mark.parametrize(("worker", "model"), [("h@hosted", "hosted"), ("local", "demo")])
async def test_what_results_cost_adds_up_by_the_model_that_made_them(world: World, worker: str, model: str) -> None:
    await world.submit_many(3)
    jobs = await world.claim(3, worker)
    usage: dict[str, int | str] = {"prompt_tokens": 5, "cost_micros": 40, "cost_currency": "EUR"}
    uses: list[dict[str, int | str]] = [usage, usage, {"prompt_tokens": 5}]
    for job, used in zip(jobs, uses, strict=True):
        assert await world.commit(Outcome.done(job, job.seq, JobResult({}, used))) == ["stored"]
    again = Outcome.done(jobs[0], jobs[0].seq, JobResult({}, usage))
    assert await world.commit(again) == ["mine"]
    (queue,) = await world.results.queues()
    assert {name: n for name, n in queue.counts.items() if name.startswith("cost:")} == {f"cost:EUR:{model}": 80}
    assert (await world.results.record(jobs[0].id)).usage == usage
