"""A job's events: numbered without a gap or repeat, whoever writes them and however it ends."""

from __future__ import annotations

import pytest

from common.jobs import JobError, JobResult, encode
from common.outcomes import Event, Outcome
from tests.conformance.world import QUEUE, World

ERROR = encode(JobError("x", "y"))


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
