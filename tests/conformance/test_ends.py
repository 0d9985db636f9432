"""Cancel and expiry: they end a job wherever it stands, and never one that has ended."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import NotFound
from common.jobs import JobResult
from common.queue import Outcome
from common.scripts import execute
from common.states import TERMINAL, State
from tests.conformance.world import QUEUE, MakeWorld, World, eventually

LIVE = ["scheduled", "queued", "in_progress", "released", "paused after a failure"]


async def bring_to(world: World, stand: str) -> str:
    """Submit a job and bring it to where it stands."""
    if stand == "scheduled":
        return await world.submit(delay_s=3600)
    job_id = await world.submit()
    if stand == "queued":
        return job_id
    job = await world.claim_one()
    if stand == "released":
        await world.release(job)
    elif stand == "paused after a failure":
        await world.fail(job, retryable=True, delay_s=3600)
    return job_id


async def end(world: World, job_id: str, how: str) -> None:
    """End a job from outside."""
    if how == "cancelled":
        await world.queue.cancel(job_id)
    else:
        await world.expire(job_id)


async def nothing_is_left(world: World) -> None:
    """No trace of a job but its record."""
    assert await world.depth() == 0
    assert await world.redis.exists(world.stream()) == 0
    for key in (f"{world.prefix}due", f"{world.prefix}expiry", f"{world.q}leases", f"{world.q}normal:users"):
        assert await world.redis.zcard(key) == 0
    assert await world.length(f"{world.q}normal:returned") == 0
    assert await world.claim(5) == []


@pytest.mark.parametrize("how", ["cancelled", "expired"])
@pytest.mark.parametrize("stand", LIVE)
async def test_a_job_ends_at_once_wherever_it_stands(world: World, stand: str, how: str) -> None:
    job_id = await bring_to(world, stand)
    await end(world, job_id, how)
    record = await world.results.record(job_id)
    assert (record.status.value, record.terminal) == (how, True)
    assert record.error is not None
    assert record.error.code == how
    await nothing_is_left(world)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_running_jobs_worker_is_told_to_stop_it_and_cannot_commit(world: World, how: str) -> None:
    await world.submit_many(2)
    job, other = await world.claim(2)
    await end(world, job.id, how)
    assert await world.queue.next_stop(QUEUE, "worker-1") == job.lease
    assert await world.length(f"{world.q}control:worker-1") == 0
    assert await world.complete(job, other) == ["lost", "stored"]
    assert await world.state(job.id) == how


@pytest.mark.parametrize("stand", ["scheduled", "queued"])
async def test_no_worker_is_told_about_a_job_that_did_not_run(world: World, stand: str) -> None:
    await world.queue.cancel(await bring_to(world, stand))
    assert not [key for key in await world.keys() if ":control:" in key]


@pytest.mark.parametrize("how", ["cancelled", "expired"])
@pytest.mark.parametrize("last", sorted(TERMINAL))
async def test_a_terminal_state_never_changes(world: World, last: State, how: str) -> None:
    job_id = await bring_to(world, "queued")
    if last in (State.CANCELLED, State.EXPIRED):
        await end(world, job_id, last.value)
    else:
        job = await world.claim_one()
        outcome = {"completed": world.complete, "failed": lambda j: world.fail(j, retryable=False)}
        await outcome.get(last.value, lambda j: world.commit_incomplete(j))(job)
    await world.outlive(job_id)  # as if it had been forgotten there
    before = await world.redis.dump(world.job_key(job_id))
    await end(world, job_id, how)
    assert await world.redis.dump(world.job_key(job_id)) == before
    assert await world.state(job_id) == last


async def test_cancelling_one_of_a_users_jobs_leaves_the_others_in_their_order(world: World) -> None:
    ids = await world.submit_many(5)
    await world.queue.cancel(ids[2])
    assert [job.id for job in await world.run_all()] == [ids[0], ids[1], ids[3], ids[4]]


async def test_cancel_and_claim_at_once_never_both_win(world: World) -> None:
    ids = await world.submit_many(20)
    cancels = [world.queue.cancel(job_id) for job_id in ids]
    claims = [world.claim(1) for _ in range(20)]
    done = await asyncio.gather(*claims, *cancels)
    for jobs in done[:20]:
        for job in jobs or []:
            assert await world.complete(job) == ["lost"]
    assert {await world.state(job_id) for job_id in ids} == {"cancelled"}
    assert await world.depth() == 0


async def test_a_job_is_not_expired_before_its_time(world: World) -> None:
    job_id = await world.submit(ttl_s=60)
    swept = await world.queue.expire(world.prefix)
    assert swept.moved == 0
    assert swept.next_ms == pytest.approx(60_000, abs=3_000)
    assert await world.state(job_id) == "queued"


async def test_an_expired_job_answers_expired_until_its_retention_ends(world: World) -> None:
    job_id = await world.submit()
    await world.expire(job_id)
    stored = await world.results.result(job_id)
    assert stored is not None
    assert (stored.record.status, stored.output) == ("expired", None)
    assert await world.ttl_ms(world.job_key(job_id)) > 0


async def test_more_ended_lives_than_one_look_takes_need_another_look(world: World) -> None:
    ids = await world.submit_many(5)
    await world.outlive(*ids)
    assert await world.queue.expire(world.prefix, limit=3) == (3, 0)
    assert (await world.queue.expire(world.prefix, limit=3)).moved == 2


async def test_jobs_with_the_usual_time_to_live_expire_in_the_order_of_their_coming(make_world: MakeWorld) -> None:
    world = make_world(default_ttl_s=0.05)
    waiting, done = await world.submit(), await world.submit()
    longer = await world.submit(ttl_s=60)
    await world.redis.delete(world.job_key(done))
    moved = 0

    async def all_looked_at() -> bool:
        nonlocal moved
        moved += (await world.queue.expire(world.prefix, limit=1)).moved
        return moved >= 3

    await eventually(all_looked_at)
    assert await world.state(waiting) == "expired"
    assert await world.state(longer) == "queued"
    late = await world.submit()
    assert (await world.queue.expire(world.prefix)).next_ms == pytest.approx(50, abs=50)
    await eventually(lambda: is_expired(world, late))


async def test_the_usual_time_to_live_may_change_between_two_starts(make_world: MakeWorld) -> None:
    before, after = make_world(default_ttl_s=60), make_world(default_ttl_s=0.05)
    long, short = await before.submit(), await after.submit()
    await eventually(lambda: is_expired(after, short))
    assert await before.state(long) == "queued"


async def is_expired(world: World, job_id: str) -> bool:
    """Whether a job is expired once the scheduler has looked."""
    await world.queue.expire(world.prefix)
    return await world.state(job_id) == "expired"


async def test_an_expiry_without_a_record_is_swept_away(world: World) -> None:
    job_id = await world.submit()
    await world.redis.delete(world.job_key(job_id))
    await world.expire(job_id)
    assert await world.redis.zcard(f"{world.prefix}expiry") == 0


async def test_a_due_time_without_a_record_or_of_an_ended_job_is_swept_away(world: World) -> None:
    gone, ended = await world.submit(delay_s=100), await world.submit(delay_s=100)
    await world.redis.delete(world.job_key(gone))
    await world.queue.cancel(ended)
    await world.redis.zadd(f"{world.prefix}due", {ended: 1})
    await world.promote(gone)
    assert await world.redis.zcard(f"{world.prefix}due") == 0
    assert await world.state(ended) == "cancelled"
    assert await world.claim(5) == []


@pytest.mark.parametrize("stand", [*LIVE, "completed"])
async def test_an_erased_job_leaves_nothing_wherever_it_stood(world: World, stand: str) -> None:
    if stand == "completed":
        job_id = await world.submit()
        job = await world.claim_one()
        await world.emit(job, "one ", "two")
        await world.commit(Outcome.done(job, job.seq + 2, JobResult({"text": "one two"})))
    else:
        job_id = await bring_to(world, stand)
    await world.queue.erase(job_id)
    for read in (world.results.record, world.results.whole, world.queue.cancel, world.queue.erase):
        with pytest.raises(NotFound):
            await read(job_id)
    assert await world.redis.exists(world.job_key(job_id), f"{world.prefix}tokens:{job_id}") == 0
    await nothing_is_left(world)


async def test_the_worker_of_an_erased_job_is_told_and_can_write_nothing(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    await world.emit(job, "one ")
    await world.queue.erase(job_id)
    assert await world.queue.next_stop(QUEUE, "worker-1") == job.lease
    assert await world.emit(job, "two", start=job.seq + 1) == [job.lease]
    assert await world.complete(job) == ["lost"]
    assert await world.redis.exists(world.job_key(job_id), f"{world.prefix}tokens:{job_id}") == 0


async def test_what_was_asked_and_its_result_go_from_the_blob_store_too(world: World) -> None:
    long = "x" * (world.settings.inline_bytes + 1)
    job_id = await world.submit(input={"prompt": long}, front={"kept": long})
    _, work = await world.results.whole(job_id)
    assert (work.input, work.front) == ({"prompt": long}, {"kept": long})
    [reference] = await execute(world.redis, "HMGET", world.job_key(job_id), "work")
    assert reference.startswith(b"@")
    await world.queue.erase(job_id)
    with pytest.raises(FileNotFoundError):
        await world.queue.blobs.load(reference)


async def test_a_retried_job_keeps_what_stands_in_front_of_it(world: World) -> None:
    job_id = await world.submit(front={"kept": 1})
    await world.queue.cancel(job_id)
    _, work = await world.results.whole((await world.queue.retry(job_id)).id)
    assert work.front == {"kept": 1}


async def test_an_erased_job_is_not_parked_any_more(world: World) -> None:
    job_id = await world.submit()
    for _ in range(world.settings.max_deaths):
        await world.rescue(await world.claim_one())
    assert [one.id for one in await world.results.parked()] == [job_id]
    await world.queue.erase(job_id)
    assert await world.results.parked() == []
