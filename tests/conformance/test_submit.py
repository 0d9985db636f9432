"""Submit: what is there once a job is accepted, and what is refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.errors import IdempotencyMismatch, NotAllowedNow, NotFound, QueueFull
from common.jobs import JobSpec, Submitted
from common.keys import new_job_id
from common.queue import Key
from common.scripts import execute, run
from common.states import State
from tests.conformance.world import QUEUE, MakeWorld, World, spec


async def test_an_accepted_job_has_a_record_an_entry_and_its_user_a_place(world: World) -> None:
    job_id = await world.submit(user="ada", priority="high", metadata={"project": "x"}, timeout_s=5, max_attempts=7)

    record = await world.results.record(job_id)
    assert (record.status, record.user, record.priority, record.kind, record.model) == (
        State.QUEUED,
        "ada",
        "high",
        "generation",
        "demo",
    )
    assert record.metadata == {"project": "x"}
    assert (record.attempts, record.claims, record.max_attempts) == (0, 0, 7)
    assert record.created_at == pytest.approx(time.time(), abs=5)
    assert record.expires_at == pytest.approx(record.created_at + world.settings.default_ttl_s, abs=0.01)
    assert (record.started_at, record.finished_at, record.run_at, record.worker) == (None, None, None, None)
    assert await world.entries("ada", "high") == 1
    assert await world.redis.zrange(f"{world.q}high:users", 0, -1) == [b"ada"]
    assert await world.depth() == 1
    (job,) = await world.claim()
    assert (job.id, job.timeout_s, job.spec.input) == (job_id, 5, {"prompt": "number 0"})


async def test_a_job_that_says_nothing_gets_the_defaults_of_the_settings(make_world: MakeWorld) -> None:
    world = make_world(default_ttl_s=50, default_timeout_s=7, max_attempts=9)
    await world.submit()
    job = await world.claim_one()
    record = await world.results.record(job.id)
    assert record.expires_at == pytest.approx(record.created_at + 50, abs=0.01)
    assert (job.timeout_s, record.max_attempts) == (7, 9)


async def test_the_same_call_sent_again_changes_nothing(world: World) -> None:
    """What Queue.submit does when the reply of a submit is lost."""
    shard = world.queue.keys.shard_of_queue(QUEUE)
    job = [new_job_id(shard), QUEUE, "normal", "ada", 0, 1000, 1000, 3, b"{}", b"", "", "", "", "", 0, "", 0, "", 0, ""]
    first = await run(world.redis, "submit", world.prefix, 1000, 10, 100, 1000, 1000, 1000, *job)
    again = await run(world.redis, "submit", world.prefix, 1000, 10, 100, 1000, 1000, 1000, *job)
    assert (first[0][0], again[0][0], again[0][1]) == (b"new", b"same", first[0][1])
    assert await world.entries("ada") == 1
    assert await world.depth() == 1


async def test_a_job_whose_id_the_caller_names_is_never_a_second_job(world: World) -> None:
    job_id = new_job_id(world.queue.keys.shard_of_queue(QUEUE))
    first = await world.queue.submit_each([spec()], (), [job_id])
    await world.complete(await world.claim_one())
    again = await world.queue.submit_each([spec()], (), [job_id])
    assert [(one.id, one.created) for one in (*first, *again) if isinstance(one, Submitted)] == [
        (job_id, True),
        (job_id, False),
    ]
    assert await world.depth() == 0


async def test_a_record_that_must_be_kept_outlives_its_retention(make_world: MakeWorld) -> None:
    world = make_world(retention_s=5)
    kept, other, cancelled = await world.submit(keep_s=600), await world.submit(), await world.submit(keep_s=600)
    await world.queue.cancel(cancelled)
    await world.complete(*await world.claim(2))
    left_s = {name: await world.redis.pttl(f"{world.prefix}job:{name}") / 1000 for name in (kept, other, cancelled)}
    assert left_s[other] <= 5
    assert 590 < left_s[kept] <= 600
    assert 590 < left_s[cancelled] <= 600
    await world.queue.let_go([kept, cancelled])
    assert await world.redis.pttl(f"{world.prefix}job:{kept}") <= 5000


async def test_fifty_concurrent_submits_with_one_key_make_one_job(world: World) -> None:
    key = Key("order-1", "print")
    answers = await asyncio.gather(*(world.queue.submit(spec(), key) for _ in range(50)))
    assert len({answer.id for answer in answers}) == 1
    assert [answer.created for answer in answers].count(True) == 1
    assert await world.entries() == 1
    assert len((await world.results.list_jobs()).records) == 1


async def test_one_key_in_one_call_makes_one_job(world: World) -> None:
    key = Key("order-1", "print")
    first, second = await world.queue.submit_many([spec(1), spec(1)], [key, key])
    assert (first.created, second.created) == (True, False)
    assert first.id == second.id


async def test_a_key_used_with_another_request_is_refused(world: World) -> None:
    await world.queue.submit(spec(), Key("order-1", "one print"))
    with pytest.raises(IdempotencyMismatch):
        await world.queue.submit(spec(1), Key("order-1", "other print"))
    assert await world.entries() == 1


async def test_another_user_with_the_same_key_gets_a_job_of_his_own(world: World) -> None:
    key = Key("order-1", "print")
    ada = await world.queue.submit(spec(user="ada"), key)
    bob = await world.queue.submit(spec(user="bob"), key)
    assert bob.created
    assert ada.id != bob.id


async def test_a_key_still_leads_to_its_job_when_that_has_ended(world: World) -> None:
    key = Key("order-1", "print")
    first = await world.queue.submit(spec(), key)
    await world.complete(await world.claim_one())
    again = await world.queue.submit(spec(), key)
    assert (again.id, again.created) == (first.id, False)


async def test_a_key_whose_job_is_gone_makes_a_new_one(world: World) -> None:
    key = Key("order-1", "print")
    first = await world.queue.submit(spec(), key)
    await world.complete(await world.claim_one())
    await world.redis.delete(world.job_key(first.id))
    again = await world.queue.submit(spec(), key)
    assert again.created
    assert again.id != first.id


async def test_a_key_is_remembered_for_as_long_as_the_settings_say(make_world: MakeWorld) -> None:
    world = make_world(idempotency_s=100)
    await world.submit(key=Key("order-1", "print"))
    (name,) = [key for key in await world.keys() if key.startswith("idem:")]
    assert 90_000 < await world.ttl_ms(world.prefix + name) <= 100_000
    assert "order-1" not in name


async def test_a_full_queue_refuses_and_says_when_to_come_back(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    await world.submit_many(3)
    with pytest.raises(QueueFull) as refused:
        await world.submit()
    assert refused.value.queue == QUEUE
    assert refused.value.retry_after_s == 60  # nobody takes jobs at all
    assert await world.depth() == 3
    await world.submit(model="other")  # another queue has room of its own


async def test_delayed_jobs_need_room_too(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    for i in range(3):
        await world.submit(i, delay_s=100)
    with pytest.raises(QueueFull):
        await world.submit(3, delay_s=100)
    with pytest.raises(QueueFull):
        await world.submit(4)


async def test_a_full_queue_that_moves_says_so(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    await world.submit_many(3)
    await world.complete(*await world.claim(2))
    await world.submit_many(2)
    with pytest.raises(QueueFull) as refused:
        await world.submit()
    assert 1 <= refused.value.retry_after_s <= 30


async def test_those_who_are_refused_are_not_all_told_to_come_at_once(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    await world.submit_many(3)
    now_ms = int(time.time() * 1000)
    await execute(world.redis, "HSET", f"{world.q}meta", "rate", "0.5", "claimed", str(now_ms))
    told = []
    for _ in range(40):
        with pytest.raises(QueueFull) as refused:
            await world.submit()
        told.append(refused.value.retry_after_s)
    assert told[:4] == pytest.approx([2, 4, 6, 8], abs=1)
    assert told == sorted(told)
    assert told[-1] == 60


async def test_a_queue_that_stands_still_does_not_promise_its_old_pace(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    await world.submit_many(3)
    long_ago_ms = int(time.time() * 1000) - 300_000
    await execute(world.redis, "HSET", f"{world.q}meta", "rate", "100", "claimed", str(long_ago_ms))
    with pytest.raises(QueueFull) as refused:
        await world.submit()
    assert refused.value.retry_after_s == 60


async def test_jobs_before_the_refused_one_stay_accepted(make_world: MakeWorld) -> None:
    world = make_world(max_depth=3)
    with pytest.raises(QueueFull):
        await world.submit_many(5)
    assert await world.depth() == 3
    assert len(await world.run_all()) == 3


async def test_a_known_key_is_answered_though_the_queue_is_full(make_world: MakeWorld) -> None:
    world = make_world(max_depth=1)
    key = Key("order-1", "print")
    first = await world.queue.submit(spec(), key)
    assert (await world.queue.submit(spec(), key)).id == first.id


async def test_a_room_that_a_claim_makes_can_be_used(make_world: MakeWorld) -> None:
    world = make_world(max_depth=1)
    await world.submit()
    await world.claim()
    await world.submit()
    with pytest.raises(QueueFull):
        await world.submit()


async def test_many_jobs_are_answered_in_the_order_asked(world: World) -> None:
    jobs = [spec(i, model=["demo", "other", "third"][i % 3]) for i in range(450)]
    answers = await world.queue.submit_many(jobs)
    assert len({answer.id for answer in answers}) == 450
    for i in (0, 1, 2, 200, 449):
        record = await world.results.record(answers[i].id, position=False)
        assert record.model == jobs[i].model


async def test_a_delayed_job_is_scheduled_and_promoted_when_it_is_due(world: World) -> None:
    job_id = await world.submit(delay_s=3600)
    assert await world.state(job_id) == "scheduled"
    assert await world.claim() == []
    assert (await world.results.record(job_id)).run_at == pytest.approx(time.time() + 3600, abs=5)

    too_early = await world.queue.promote(world.prefix)
    assert too_early.moved == 0
    assert too_early.next_ms == pytest.approx(3_600_000, abs=5_000)

    assert (await world.promote(job_id)).moved == 1
    assert await world.states(job_id) == ["scheduled", "queued"]
    assert (await world.claim_one()).id == job_id


async def test_a_job_for_a_time_that_is_over_is_queued_at_once(world: World) -> None:
    assert await world.state(await world.submit(run_at=time.time() - 10)) == "queued"


async def test_a_due_job_is_promoted_once_however_many_look(world: World) -> None:
    ids = [await world.submit(i, delay_s=3600) for i in range(10)]
    for job_id in ids:
        await world.redis.zadd(f"{world.prefix}due", {job_id: 1})
    swept = await asyncio.gather(*(world.queue.promote(world.prefix) for _ in range(5)))
    assert sum(one.moved for one in swept) == 10
    assert await world.depth() == 10
    assert sorted(job.id for job in await world.run_all()) == sorted(ids)


async def test_more_due_jobs_than_one_look_takes_need_another_look(world: World) -> None:
    ids = [await world.submit(i, delay_s=3600) for i in range(5)]
    for job_id in ids:
        await world.redis.zadd(f"{world.prefix}due", {job_id: 1})
    assert await world.queue.promote(world.prefix, limit=3) == (3, 0)
    assert await world.queue.promote(world.prefix, limit=3) == (2, None)


async def test_a_scheduled_job_wakes_the_scheduler_only_when_it_is_the_first(world: World) -> None:
    bell = f"{world.prefix}scheduler:bell"
    await world.submit(delay_s=3600)
    assert await world.length(bell) == 1
    await world.redis.delete(bell)
    await world.submit(delay_s=7200)
    assert await world.length(bell) == 0
    await world.submit(delay_s=60)
    await world.submit(delay_s=50)
    assert await world.length(bell) == 1


async def test_a_ready_job_rings_the_bell_once(world: World) -> None:
    await world.submit_many(5)
    assert await world.length(f"{world.q}bell") == 1
    assert await world.queue.wait_for_bell(QUEUE)
    await world.submit()
    assert await world.length(f"{world.q}bell") == 1


async def test_a_large_input_goes_through_the_blob_store(make_world: MakeWorld) -> None:
    world = make_world(inline_bytes=1000)
    text = "x" * 5000
    job_id = await world.submit(input={"prompt": text})
    job = await world.claim_one()
    assert job.raw.startswith(b"@")
    assert int(await execute(world.redis, "HSTRLEN", world.job_key(job_id), "work")) < 100
    assert text.encode() in await world.queue.blobs.load(job.raw)


async def test_retry_submits_the_same_work_as_a_new_job(make_world: MakeWorld) -> None:
    world = make_world(inline_bytes=100)
    old = await world.submit(
        input={"prompt": "y" * 500}, params={"max_tokens": 3}, user="ada", priority="low", metadata={"a": "b"},
        timeout_s=4, max_attempts=2,
    )  # fmt: skip
    await world.fail(await world.claim_one(), retryable=False)
    new = await world.queue.retry(old)
    assert new.created
    record = await world.results.record(new.id)
    assert (record.retry_of, record.user, record.priority, record.metadata) == (old, "ada", "low", {"a": "b"})
    assert (record.max_attempts, record.status) == (2, State.QUEUED)
    job = await world.claim_one()
    assert (job.id, job.timeout_s) == (new.id, 4)
    assert b"max_tokens" in await world.queue.blobs.load(job.raw)
    assert await world.state(old) == "failed"


async def test_retry_asked_twice_is_the_same_job(world: World) -> None:
    old = await world.submit()
    await world.queue.cancel(old)
    first, second = await world.queue.retry(old), await world.queue.retry(old)
    assert (first.id, first.created, second.created) == (second.id, True, False)


async def test_retry_is_refused_while_a_job_may_still_complete_or_has(world: World) -> None:
    job_id = await world.submit()
    with pytest.raises(NotAllowedNow):
        await world.queue.retry(job_id)
    await world.complete(await world.claim_one())
    with pytest.raises(NotAllowedNow):
        await world.queue.retry(job_id)


@pytest.mark.parametrize("job_id", ["", "nonsense", new_job_id("ff"), new_job_id("00")])
async def test_an_unknown_id_is_not_found_whatever_is_asked(world: World, job_id: str) -> None:
    for call in (world.queue.cancel, world.queue.retry, world.queue.replay, world.results.record, world.results.result):
        with pytest.raises(NotFound):
            await call(job_id)
    with pytest.raises(NotFound):
        await world.results.events(job_id)
    with pytest.raises(NotFound):
        await anext(world.results.follow(job_id))


async def test_a_job_function_of_another_name_is_kept(world: World) -> None:
    await world.queue.submit(JobSpec(kind="generation", model="demo", input={}, function="nightly"))
    assert (await world.claim_one()).spec.function == "nightly"
