"""What is over leaves nothing behind once its retention has ended."""

from __future__ import annotations

import time

import pytest

from common.errors import NotFound
from common.jobs import JobError, JobResult, encode
from common.outcomes import Outcome
from tests.conformance.world import QUEUE, MakeWorld, World

DAY_MS = 86_400_000
ERROR = encode(JobError("x", "y"))


async def test_a_finished_jobs_record_goes_after_its_retention(make_world: MakeWorld) -> None:
    world = make_world(retention_s=100)
    job_id = await world.submit()
    assert await world.ttl_ms(world.job_key(job_id)) == -1
    await world.complete(await world.claim_one())
    assert 90_000 < await world.ttl_ms(world.job_key(job_id)) <= 100_000
    await world.redis.delete(world.job_key(job_id))
    with pytest.raises(NotFound):
        await world.results.record(job_id)


@pytest.mark.parametrize("delivery", ["first", "second"])
async def test_a_finished_jobs_tokens_go_after_its_retention(make_world: MakeWorld, delivery: str) -> None:
    world = make_world(retention_s=100)
    job_id = await world.submit()
    job = await world.claim_one()
    await world.emit(job, "a")
    written = 1
    if delivery == "second":  # which writes no tokens of its own
        await world.rescue(job)
        job, written = await world.claim_one(), 0
    await world.commit(Outcome.done(job, job.seq + written, JobResult({})))
    tokens = f"{world.prefix}tokens:{job_id}"
    assert 90_000 < await world.ttl_ms(tokens) <= 100_000


@pytest.mark.parametrize("end", ["cancelled", "expired", "poisoned", "failed", "last attempt"])
async def test_record_and_tokens_go_however_the_job_ended(make_world: MakeWorld, end: str) -> None:
    world = make_world(retention_s=100, max_deaths=1)
    job_id = await world.submit(max_attempts=1)
    job = await world.claim_one()
    await world.emit(job, "a")
    if end == "cancelled":
        await world.queue.cancel(job_id)
    elif end == "expired":
        await world.expire(job_id)
    elif end == "poisoned":
        await world.rescue(job)
    else:
        kind = "failed" if end == "failed" else "retry"
        await world.commit(Outcome(job, kind, job.seq + 1, b"{}"))  # type: ignore[arg-type]
    for key in (world.job_key(job_id), f"{world.prefix}tokens:{job_id}"):
        assert 90_000 < await world.ttl_ms(key) <= 100_000
    assert await world.redis.zcard(f"{world.prefix}expiry") == 0


async def test_the_index_forgets_jobs_whose_records_are_gone(world: World) -> None:
    ids = await world.submit_many(10)
    await world.run_all()
    await world.redis.delete(*(world.job_key(job_id) for job_id in ids[1:7]))  # the oldest one lives longest
    assert await world.queue.trim(world.prefix, older_than_s=60) == 0
    assert await world.queue.trim(world.prefix, limit=4) == 6
    assert await world.queue.trim(world.prefix, limit=4) == 0
    assert [record.id for record in (await world.results.list_jobs()).records] == [*ids[:6:-1], ids[0]]


async def test_after_retention_only_what_is_bounded_is_left(world: World) -> None:
    """Each key that may stay, and why it cannot grow with the number of jobs."""
    bounded = {
        "queues",  # one member per queue
        "events",  # capped
        "ticks",  # capped
        "index",  # one entry per record that is there
        "scheduler:bell",  # one token
        f"q:{QUEUE}:meta",  # a fixed number of fields
        f"q:{QUEUE}:counts",  # a fixed number of fields
        f"q:{QUEUE}:bell",  # one token
        f"q:{QUEUE}:workers",  # live workers
        f"q:{QUEUE}:worker:worker-1",  # goes when the worker is silent
        f"q:{QUEUE}:claimed:worker-1",  # goes with the worker or after ten minutes
        f"q:{QUEUE}:control:worker-1",  # goes after a minute
    }
    for user in ("ada", "bob"):
        for lane in ("high", "normal", "low"):
            await world.submit_many(4, user=user, priority=lane)
    await world.submit(user="eve", delay_s=100)
    jobs = await world.claim(16)
    await world.renew(*(job.lease for job in jobs))
    for job in jobs:
        await world.emit(job, "token")
    written = [Outcome(job, "completed", job.seq + 1, b"{}") for job in jobs[:6]]
    await world.commit(*written, *(Outcome(job, "retry", job.seq + 1, ERROR) for job in jobs[6:9]))
    await world.rescue(*jobs[9:11])
    await world.commit(*(Outcome.release(job, job.seq + 1) for job in jobs[11:14]))
    await world.queue.cancel(jobs[14].id)
    await world.expire(jobs[15].id)
    for record in (await world.results.list_jobs(limit=100)).records:
        if record.id != jobs[0].id:
            await world.queue.cancel(record.id)
    for name in await world.keys():
        if name.startswith(("job:", "tokens:")):
            assert await world.ttl_ms(world.prefix + name) > 0, name
            await world.redis.delete(world.prefix + name)  # its retention ends
    await world.queue.trim(world.prefix)
    day = f"usage:{int(time.time() // 86_400)}"
    assert await world.ttl_ms(world.prefix + day) > 0
    assert await world.keys() <= bounded | {day}
    assert await world.redis.xlen(f"{world.prefix}index") == 0
    assert await world.depth() == 0
    assert DAY_MS > await world.ttl_ms(f"{world.q}claimed:worker-1") > 0
    assert await world.ttl_ms(f"{world.q}control:worker-1") > 0
