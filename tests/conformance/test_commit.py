"""Commit: how a run's end is stored, failed, tried again or given back, and by whom."""

from __future__ import annotations

import pytest

from common.jobs import JobError, JobResult, encode
from common.outcomes import Outcome, backoff_s
from common.scripts import execute
from tests.conformance.world import QUEUE, MakeWorld, World

ERROR = encode(JobError("x", "y"))


# -- commit


async def test_a_committed_result_is_stored_with_its_usage_and_times(world: World) -> None:
    job_id = await world.submit()
    assert await world.complete(await world.claim_one(), text="hello") == ["stored"]
    stored = await world.results.result(job_id)
    assert stored is not None
    assert stored.output is not None
    assert bytes(stored.output) == b'{"text":"hello"}'
    record = stored.record
    assert (record.status.value, record.usage, record.error) == ("completed", {"total_tokens": 3}, None)
    assert record.terminal
    assert record.queue_ms is not None
    assert record.run_ms is not None
    assert record.queue_ms >= 0
    assert record.run_ms >= 0
    assert await world.states(job_id) == ["queued", "in_progress", "completed"]


async def test_a_result_cut_by_the_models_context_is_incomplete(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    await world.commit(Outcome.done(job, job.seq, JobResult({"text": "cut"}, {}, incomplete=True)))
    stored = await world.results.result(job_id)
    assert stored is not None
    assert stored.record.status == "incomplete"
    assert stored.record.usage is None
    assert stored.output is not None


async def test_a_job_without_a_result_yet_has_none(world: World) -> None:
    job_id = await world.submit()
    assert await world.results.result(job_id) is None
    await world.queue.cancel(job_id)
    stored = await world.results.result(job_id)
    assert stored is not None
    assert stored.output is None


async def test_the_same_commit_again_is_mine_and_changes_nothing(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    await world.complete(job, text="first")
    before = await world.redis.dump(world.job_key(job_id))
    assert await world.complete(job, text="second") == ["mine"]
    assert await world.redis.dump(world.job_key(job_id)) == before


@pytest.mark.parametrize("how", ["retry", "release"])
async def test_a_retry_or_a_release_sent_again_is_mine(world: World, how: str) -> None:
    await world.submit()
    job = await world.claim_one()
    outcome = Outcome.release(job, job.seq) if how == "release" else Outcome(job, "retry", job.seq, ERROR)
    assert await world.commit(outcome) == ["stored"]
    assert await world.commit(outcome) == ["mine"]
    assert await world.results.record(job.id, position=False)


async def test_a_stale_commit_after_a_rescue_is_lost_and_changes_nothing(world: World) -> None:
    job_id = await world.submit()
    stale = await world.claim_one("worker-1")
    await world.rescue(stale)
    assert await world.complete(stale, text="stale") == ["lost"]  # while it waits again
    fresh = await world.claim_one("worker-2")
    before = await world.redis.dump(world.job_key(job_id))
    for outcome in ("completed", "incomplete", "failed", "retry", "release"):
        assert await world.commit(Outcome(stale, outcome, stale.seq, b"{}")) == ["lost"]
    assert await world.redis.dump(world.job_key(job_id)) == before
    assert await world.redis.zrange(f"{world.q}leases", 0, -1) == [fresh.lease.encode()]
    assert await world.complete(fresh, text="fresh") == ["stored"]
    assert await world.complete(stale, text="stale") == ["lost"]  # after the end
    stored = await world.results.result(job_id)
    assert stored is not None
    assert stored.output is not None
    assert bytes(stored.output) == b'{"text":"fresh"}'


async def test_a_commit_of_a_job_that_is_gone_is_lost(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    await world.redis.delete(world.job_key(job.id))
    assert await world.complete(job) == ["lost"]


async def test_a_batch_answers_for_each_job(world: World) -> None:
    for user in ("ada", "bob", "eve", "kim"):
        await world.submit(user=user)
    jobs = await world.claim(4)
    await world.queue.cancel(jobs[1].id)
    await world.complete(jobs[2])
    assert await world.complete(*jobs) == ["stored", "lost", "mine", "stored"]
    assert await world.complete() == []


async def test_a_commit_may_claim_what_its_slots_make_room_for_and_be_sent_again(world: World) -> None:
    ids = await world.submit_many(4)
    first = await world.queue.claim(QUEUE, "worker-1", 2, 1)
    ends = [Outcome.done(job, job.seq, JobResult({"text": "an answer"})) for job in first]
    answers, claimed = await world.queue.commit_and_claim(QUEUE, "worker-1", ends, 2, 2)
    assert answers == ["stored", "stored"]
    assert [job.id for job in claimed] == ids[2:]
    assert await world.queue.commit_and_claim(QUEUE, "worker-1", ends, 2, 2) == (["mine", "mine"], claimed)
    assert await world.redis.zcard(f"{world.q}leases") == 2
    assert [await world.state(job_id) for job_id in ids] == ["completed"] * 2 + ["in_progress"] * 2


async def test_after_the_commit_nothing_of_the_jobs_place_is_left(world: World) -> None:
    await world.submit_many(3, user="ada")
    jobs = await world.claim(3)
    assert await world.redis.exists(world.stream("ada")) == 0
    await world.complete(jobs[1])
    assert await world.redis.zcard(f"{world.q}leases") == 2
    await world.complete(jobs[0], jobs[2])
    assert await world.redis.zcard(f"{world.q}leases") == 0
    assert await world.redis.zcard(f"{world.prefix}expiry") == 0


async def test_a_large_result_comes_back_through_the_blob_store(make_world: MakeWorld) -> None:
    world = make_world(inline_bytes=100)
    job_id = await world.submit()
    job = await world.claim_one()
    body = Outcome.done(job, job.seq, JobResult({"text": "z" * 1000})).body
    reference = await world.queue.blobs.store(body, world.settings.retention_s)
    assert reference.startswith(b"@")
    await world.commit(Outcome(job, "completed", job.seq, reference))
    stored = await world.results.result(job_id)
    assert stored is not None
    assert stored.output is not None
    assert bytes(stored.output) == body


# -- handled failures


async def test_a_retryable_failure_is_scheduled_and_its_attempt_is_counted(world: World) -> None:
    job_id = await world.submit(max_attempts=3)
    job = await world.claim_one()
    await world.fail(job, retryable=True, delay_s=3600)
    record = await world.results.record(job_id)
    assert (record.status.value, record.attempts, record.claims) == ("scheduled", 1, 1)
    assert record.error == JobError("engine_said_no", "it did not work")
    assert record.waiting_for is not None
    assert record.waiting_for.startswith("the pause after a failed attempt")
    assert await world.redis.exists(world.stream()) == 0
    assert await world.claim() == []
    await world.promote(job_id)
    again = await world.claim_one()
    assert (again.id, again.attempts, again.claims) == (job_id, 1, 2)
    await world.complete(again)
    assert (await world.results.record(job_id)).error is None
    assert await world.states(job_id) == ["queued", "in_progress", "scheduled", "queued", "in_progress", "completed"]


async def test_the_last_attempt_fails_the_job(world: World) -> None:
    job_id = await world.submit(max_attempts=2)
    await world.fail(await world.claim_one(), retryable=True)
    await world.promote(job_id)
    await world.fail(await world.claim_one(), retryable=True)
    record = await world.results.record(job_id)
    assert (record.status.value, record.attempts, record.claims) == ("failed", 2, 2)
    assert record.error == JobError("engine_said_no", "it did not work")
    assert record.terminal


async def test_a_failure_that_no_retry_can_help_fails_the_job_at_once(world: World) -> None:
    job_id = await world.submit(max_attempts=5)
    await world.fail(await world.claim_one(), retryable=False)
    assert await world.state(job_id) == "failed"


async def test_a_retry_with_no_pause_is_due_at_once(world: World) -> None:
    job_id = await world.submit()
    await world.fail(await world.claim_one(), retryable=True, delay_s=0.0)
    assert (await world.queue.promote(world.prefix)).moved == 1
    assert await world.state(job_id) == "queued"


async def test_a_failure_says_nothing_of_its_pause_and_gets_the_backoff(make_world: MakeWorld) -> None:
    world = make_world(retry_delay_s=100)
    job_id = await world.submit()
    await world.fail(await world.claim_one(), retryable=True, delay_s=None)
    record = await world.results.record(job_id)
    assert record.run_at is not None
    assert 45 < record.run_at - record.created_at <= 105


def test_the_backoff_doubles_and_is_capped(make_world: MakeWorld) -> None:
    settings = make_world(retry_delay_s=1, retry_delay_max_s=60).settings
    for attempts, ceiling in [(0, 1), (1, 2), (3, 8), (5, 32), (6, 60), (50, 60), (5000, 60)]:
        pauses = [backoff_s(attempts, settings) for _ in range(50)]
        assert all(ceiling / 2 <= pause <= ceiling for pause in pauses)
    assert len(set(pauses)) > 1


# -- release


async def test_a_released_job_goes_before_all_others_of_its_lane_and_no_attempt_is_counted(world: World) -> None:
    await world.submit_many(3, user="ada")
    await world.submit_many(3, user="bob")
    job = await world.claim_one()
    assert await world.release(job) == ["stored"]
    assert await world.depth() == 6
    record = await world.results.record(job.id)
    assert (record.status.value, record.attempts, record.queue_position) == ("queued", 0, 1)
    again = await world.claim_one("worker-2")
    assert (again.id, again.claims, again.attempts) == (job.id, 2, 0)


async def test_released_jobs_keep_their_order(world: World) -> None:
    ids = await world.submit_many(4)
    jobs = await world.claim(4)
    await world.commit(*(Outcome.release(job, job.seq) for job in jobs))
    assert [job.id for job in await world.claim(4)] == ids


async def test_a_released_job_is_not_passed_by_a_higher_lane_for_ever(world: World) -> None:
    await world.submit(priority="low")
    job = await world.claim_one()
    await world.release(job)
    await world.submit_many(40, priority="high")
    assert "low" in {(await world.claim_one()).lane for _ in range(34)}


# -- what runs take


async def test_what_all_runs_of_a_job_took_of_their_workers_time_is_in_its_record(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    assert await world.commit(Outcome(job, "release", job.seq, gpu_ms=30)) == ["stored"]
    job = await world.claim_one()
    done = Outcome(job, "completed", job.seq, b"{}", b'{"total_tokens":7}', gpu_ms=200)
    assert await world.commit(done) == ["stored"]
    assert await world.commit(done) == ["mine"]
    assert (await world.results.record(job.id)).gpu_ms == 230


async def test_a_queue_knows_what_its_jobs_cost_of_late(world: World) -> None:
    for units, gpu_ms in ((10, 100), (30, 100)):
        await world.submit()
        job = await world.claim_one()
        usage = b'{"prompt_tokens":2,"total_tokens":%d}' % units
        await world.commit(Outcome(job, "completed", job.seq, b"{}", usage, gpu_ms=gpu_ms))
    kept = await execute(world.redis, "HMGET", f"{world.q}meta", "pace:jobs", "pace:units", "pace:gpu")
    jobs, used, gpu = (float(value or 0) for value in kept)
    assert (round(jobs, 2), round(gpu / used, 1)) == (2.0, 5.0)
