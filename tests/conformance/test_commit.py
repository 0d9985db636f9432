"""Commit, renew, emit, rescue: who may write about a job, and what happens when a worker does not."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.errors import NotFound
from common.jobs import JobError, JobResult, encode
from common.outcomes import Event, Outcome, backoff_s
from common.scripts import execute
from tests.conformance.world import QUEUE, MakeWorld, World

DAY_MS = 86_400_000
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


# -- rescue


async def test_a_lease_that_has_not_ended_is_left_alone(make_world: MakeWorld) -> None:
    world = make_world(lease_s=30)
    await world.submit()
    job = await world.claim_one()
    swept = await world.queue.rescue(world.prefix)
    assert swept.moved == 0
    assert swept.next_ms == pytest.approx(30_000, abs=2_000)
    assert await world.state(job.id) == "in_progress"
    assert (await world.queue.rescue(world.prefix)).moved == 0


async def test_a_job_of_a_silent_worker_starts_first_elsewhere(world: World) -> None:
    await world.submit_many(3, user="ada")
    await world.submit_many(3, user="bob")
    job = await world.claim_one("dead")
    assert (await world.rescue(job)).moved == 1
    assert await world.redis.zcard(f"{world.q}leases") == 0
    again = await world.claim_one("alive")
    assert (again.id, again.claims, again.attempts) == (job.id, 2, 0)
    assert await world.states(job.id) == ["queued", "in_progress", "queued", "in_progress"]


async def test_concurrent_rescuers_move_a_job_once(world: World) -> None:
    ids = await world.submit_many(20)
    for job in await world.claim(20):
        await world.redis.zadd(f"{world.q}leases", {job.lease: 1})
    swept = await asyncio.gather(*(world.queue.rescue(world.prefix) for _ in range(5)))
    assert sum(one.moved for one in swept) == 20
    assert await world.depth() == 20
    assert sorted(job.id for job in await world.claim(50)) == sorted(ids)


async def test_a_lease_left_over_from_an_ended_job_is_swept_away(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    await world.complete(job)
    await world.redis.zadd(f"{world.q}leases", {job.lease: 1, "job_gone:1": 1})
    assert await world.queue.rescue(world.prefix) == (0, None)
    assert await world.state(job.id) == "completed"


async def test_a_job_that_outlived_its_workers_too_often_is_parked_as_poisoned(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=3)
    job_id = await world.submit()
    for claims in (1, 2, 3):
        job = await world.claim_one(f"worker-{claims}")
        assert job.claims == claims
        await world.rescue(job)
    record = await world.results.record(job_id)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "poisoned"
    assert "3 times" in record.error.message
    assert len(record.history) == 7
    (parked,) = await world.results.parked()
    assert (parked.id, parked.queue) == (job_id, QUEUE)
    assert "poisoned" in parked.reason
    assert await world.claim(5) == []
    assert await world.redis.exists(world.stream()) == 0


async def test_a_job_whose_next_death_would_park_it_ends_the_claim_it_is_in(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=3)
    suspect = await world.submit()
    for _ in range(2):
        job = await world.claim_one()
        assert not job.suspect
        await world.rescue(job)
    others = await world.submit_many(3)
    (job,) = await world.claim(5)
    assert (job.id, job.suspect) == (suspect, True)
    assert await world.queue.wait_for_bell(QUEUE)  # for the jobs behind it
    assert [other.id for other in await world.claim(5)] == others


async def test_a_released_or_repeated_delivery_does_not_count_towards_poison(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=2)
    await world.submit()
    for _ in range(5):
        job = await world.claim_one()
        await world.release(job)
    await world.rescue(await world.claim_one())
    assert await world.state(job.id) == "queued"


async def test_a_parked_job_can_be_replayed_as_a_new_one(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    job_id = await world.submit(9)
    await world.rescue(await world.claim_one())
    replayed = await world.queue.replay(job_id)
    assert replayed.created
    assert await world.results.parked() == []
    job = await world.claim_one()
    assert (job.id, job.spec.input) == (replayed.id, {"prompt": "number 9"})
    assert (await world.results.record(job.id)).retry_of == job_id
    assert await world.state(job_id) == "failed"


async def test_a_parked_entry_without_a_record_cannot_be_replayed(world: World) -> None:
    orphan = await world.submit()
    await world.redis.delete(world.job_key(orphan))
    await world.claim()
    (parked,) = await world.results.parked()
    with pytest.raises(NotFound):
        await world.queue.replay(parked.id)


async def test_the_parked_list_is_newest_first_and_paged(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    ids = await world.submit_many(5)
    for at, job in enumerate(await world.claim(5)):
        await world.rescue(job)
        await world.redis.zadd(f"{world.prefix}parked", {job.id: at})
    first = await world.results.parked(limit=2)
    rest = await world.results.parked(after=first[-1].id)
    assert [row.id for row in first + rest] == ids[::-1]
    assert await world.results.parked(after=ids[0]) == []


async def test_the_parked_list_is_bounded(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    await world.redis.zadd(f"{world.prefix}parked", {f"old-{i}": i for i in range(10_005)})
    await world.submit()
    await world.rescue(await world.claim_one())
    assert await world.redis.zcard(f"{world.prefix}parked") == 10_000


# -- renew


async def test_a_renewed_lease_ends_later(make_world: MakeWorld) -> None:
    world = make_world(lease_s=30)
    await world.submit()
    job = await world.claim_one()
    await world.redis.zadd(f"{world.q}leases", {job.lease: 1})
    assert await world.renew(job.lease) == []
    assert (await world.queue.rescue(world.prefix)).moved == 0


async def test_a_stale_renewal_reports_the_loss_and_steals_nothing(world: World) -> None:
    await world.submit()
    stale = await world.claim_one("worker-1")
    await world.rescue(stale)
    assert await world.renew(stale.lease) == [stale.lease]
    fresh = await world.claim_one("worker-2")
    assert await world.renew(stale.lease, fresh.lease) == [stale.lease]
    assert await world.redis.zrange(f"{world.q}leases", 0, -1) == [fresh.lease.encode()]
    assert (await world.results.record(stale.id)).worker == "worker-2"


async def test_ended_jobs_are_reported_as_lost_leases(world: World) -> None:
    await world.submit_many(3)
    done, cancelled, kept = await world.claim(3)
    await world.complete(done)
    await world.queue.cancel(cancelled.id)
    assert await world.renew(done.lease, cancelled.lease, kept.lease) == [done.lease, cancelled.lease]


async def test_a_beat_lists_the_worker_until_it_falls_silent(make_world: MakeWorld) -> None:
    world = make_world(lease_s=20)
    await world.renew()
    assert await world.results.workers(QUEUE) == [{"id": "worker-1"}]
    assert 15_000 < await world.ttl_ms(f"{world.q}worker:worker-1") <= 20_000
    await world.redis.zadd(f"{world.q}workers", {"worker-1": 1})
    assert await world.results.workers(QUEUE) == []
    await world.queue.rescue(world.prefix)
    assert await world.redis.zcard(f"{world.q}workers") == 0


# -- events


async def test_events_of_a_run_stand_between_its_states_without_a_gap(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    assert await world.emit(job, "a", "b", "c") == []
    await world.queue.emit(QUEUE, [Event(job, job.seq + 4, "progress", {"done": 0.5})])
    await world.commit(Outcome.done(job, job.seq + 4, JobResult({"text": "abc"})))
    events = await world.results.events(job_id)
    assert [event.seq for event in events] == list(range(1, 8))
    assert [event.event for event in events] == ["state", "state", "token", "token", "token", "progress", "state"]
    assert [event.data["text"] for event in events[2:5]] == ["a", "b", "c"]
    assert events[-1].data["status"] == "completed"
    assert await world.results.events(job_id, after=4) == events[4:]
    assert await world.results.events(job_id, after=7) == []


async def test_an_event_sent_again_is_written_once(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    await world.emit(job, "a", "b")
    assert await world.emit(job, "a", "b", "c") == []
    assert [event["text"] for event in await world.results.emitted(job_id)] == ["a", "b", "c"]


async def test_a_worker_without_the_lease_writes_no_event(world: World) -> None:
    await world.submit_many(2)
    stale, other = await world.claim(2)
    await world.rescue(stale)
    emitted = await world.queue.emit(QUEUE, [Event(job, job.seq + 1, "token", {}) for job in (stale, other, stale)])
    assert emitted.lost == [stale.lease]
    assert await world.results.emitted(stale.id) == []
    assert len(await world.results.emitted(other.id)) == 1
    await world.complete(other)
    assert await world.emit(other, "late") == [other.lease]


async def test_the_next_delivery_goes_on_after_the_tokens_of_the_last(world: World) -> None:
    job_id = await world.submit()
    first = await world.claim_one("worker-1")
    await world.emit(first, "a", "b")
    await world.rescue(first)
    second = await world.claim_one("worker-2")
    assert second.seq == first.seq + 4  # two tokens, queued, in_progress
    assert [event["text"] for event in await world.results.emitted(job_id)] == ["a", "b"]
    await world.emit(second, "c")
    await world.commit(Outcome.done(second, second.seq + 1, JobResult({"text": "abc"})))
    events = await world.results.events(job_id)
    assert [event.seq for event in events] == list(range(1, 9))
    assert [event.data["text"] for event in events if event.event == "token"] == ["a", "b", "c"]


@pytest.mark.parametrize("end", ["cancelled", "expired", "rescued", "failed", "released", "retried"])
async def test_no_event_is_skipped_or_doubled_however_a_run_with_tokens_ends(world: World, end: str) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    await world.emit(job, "a", "b", "c")
    if end == "cancelled":
        await world.queue.cancel(job_id)
    elif end == "expired":
        await world.expire(job_id)
    elif end == "rescued":
        await world.rescue(job)
    elif end == "released":
        await world.release(job, job.seq + 3)
    else:
        kind = "failed" if end == "failed" else "retry"
        await world.commit(Outcome(job, kind, job.seq + 3, ERROR))  # type: ignore[arg-type]
        if end == "retried":
            await world.promote(job_id)
    seqs = [event.seq for event in await world.results.events(job_id)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_the_error_of_a_failed_job_comes_with_its_event(world: World) -> None:
    job_id = await world.submit()
    await world.fail(await world.claim_one(), retryable=False)
    last = (await world.results.events(job_id))[-1]
    assert last.data["error"] == {"code": "engine_said_no", "message": "it did not work"}


async def test_more_events_than_one_read_takes_come_in_order(world: World) -> None:
    job_id = await world.submit()
    job = await world.claim_one()
    tokens = 10_050
    for start in range(0, tokens, 1000):
        await world.emit(job, *["t"] * min(1000, tokens - start), start=job.seq + start)
    await world.commit(Outcome.done(job, job.seq + tokens, JobResult({})))
    seen, after = [], 0
    while events := await world.results.events(job_id, after):
        seen += [event.seq for event in events]
        after = events[-1].seq
    assert seen == list(range(1, tokens + 4))


# -- retention


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
