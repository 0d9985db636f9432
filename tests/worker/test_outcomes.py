"""How a run can end, and what is stored of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from common.errors import JobFailed
from common.jobs import ClaimedJob, JobRecord, JobResult
from common.scripts import execute
from common.settings import Settings
from tests.waiting import until
from tests.worker.place import QUEUE, Gate, Place


async def run(place: Place, work: Any, **spec: Any) -> JobRecord:
    await place.worker(work)
    return await place.end(await place.submit(**spec))


def blobs_in(folder: Path) -> int:
    return sum(path.is_file() for path in folder.glob("blobs/*/*"))


def error_of(record: JobRecord) -> tuple[str, str]:
    assert record.error is not None
    return record.error.code, record.error.message


async def test_a_returned_dictionary_is_the_output(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> dict[str, Any]:
        return {"text": "ünïcode ✓", "n": 1.5}

    record = await run(place, work)
    assert record.status == "completed"
    assert (record.claims, record.attempts) == (1, 0)
    assert await place.output(record.id) == {"text": "ünïcode ✓", "n": 1.5}


async def test_an_incomplete_result_is_stored_as_such(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> JobResult:
        return JobResult({"text": "cut"}, {"total_tokens": 3}, incomplete=True)

    record = await run(place, work)
    assert (record.status, record.usage) == ("incomplete", {"total_tokens": 3})


async def test_a_failure_that_is_final_says_its_code_and_message(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> None:
        raise JobFailed("too_long", "the prompt is too long")

    record = await run(place, work)
    assert (record.status, record.attempts, record.claims) == ("failed", 1, 1)
    assert error_of(record) == ("too_long", "the prompt is too long")


async def test_a_failure_that_may_be_retried_is_retried_until_its_attempts_are_used_up(place: Place) -> None:
    place.schedule()
    tries: list[int] = []

    async def work(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        raise JobFailed("flaky", "again", retryable=True, delay_s=0.01)

    record = await run(place, work, max_attempts=3)
    assert tries == [1, 2, 3]
    assert (record.status, record.attempts, record.claims) == ("failed", 3, 3)
    assert error_of(record) == ("flaky", "again")


async def test_an_unexpected_exception_is_retried_and_tells_no_details(place: Place) -> None:
    place.schedule()

    async def work(ctx: dict[str, Any]) -> str:
        if ctx["job_try"] == 1:
            raise ValueError("a secret prompt")
        return "second"

    record = await run(place, work)
    assert (record.status, record.attempts) == ("completed", 1)
    events = await place.results.events(record.id)
    assert "secret" not in str(events)


async def test_the_error_of_an_unexpected_exception_names_its_class_only(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> None:
        raise ValueError("a secret prompt")

    assert error_of(await run(place, work, max_attempts=1)) == ("error", "ValueError in the job function")


async def test_a_run_longer_than_its_timeout_is_ended(place: Place) -> None:
    gate = Gate()
    record = await run(place, gate.function, timeout_s=0.3)
    assert error_of(record) == ("timeout", "it ran longer than 0.3 s")
    assert gate.stopped == [record.id]
    assert record.run_ms is not None
    assert record.run_ms < 2000


async def test_a_function_that_cancels_itself_has_failed_and_is_retried(place: Place) -> None:
    place.schedule()

    async def work(ctx: dict[str, Any]) -> str:
        if ctx["job_try"] == 1:
            raise asyncio.CancelledError
        return "second"

    record = await run(place, work)
    assert (record.status, record.attempts) == ("completed", 1)


async def test_a_function_that_always_cancels_itself_fails_in_the_end(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    assert error_of(await run(place, work, max_attempts=1)) == ("error", "the job function cancelled itself")


async def test_an_unknown_function_fails_the_job_at_once(place: Place) -> None:
    record = await run(place, Gate().function, function="nothing")
    assert error_of(record) == ("unknown_function", "this worker has no function 'nothing'")
    assert record.attempts == 1


@pytest.mark.parametrize("work", [b"\x80\x04N.", b"{", b'{"input": {}, "v": 99}', b'{"input": []}', b'"\xff"'])
async def test_unreadable_work_fails_the_job_and_the_worker_lives(place: Place, work: bytes) -> None:
    bad = await place.submit()
    await execute(place.queue.redis, "HSET", place.queue.keys.job(bad), "work", work)
    gate = Gate()
    gate.open.set()
    await place.worker(gate.function)
    record = await place.end(bad)
    assert record.status == "failed"
    assert error_of(record)[0] == "unreadable"
    assert (await place.end(await place.submit())).status == "completed"
    assert gate.started != [bad]


async def test_a_big_input_and_a_big_result_go_through_the_blob_store(place: Place, tmp_path: Path) -> None:
    async def work(ctx: dict[str, Any], text: str) -> dict[str, Any]:
        return {"text": text[::-1]}

    text = "0123456789" * 20_000
    record = await run(place, work, input={"text": text})
    assert await place.output(record.id) == {"text": text[::-1]}
    kept = await execute(place.queue.redis, "HGET", place.queue.keys.job(record.id), "result")
    assert kept.startswith(b"@")
    assert blobs_in(tmp_path) == 2


async def test_a_result_that_cannot_be_encoded_is_a_failure(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> dict[str, Any]:
        return {"text": object()}

    assert error_of(await run(place, work, max_attempts=1))[0] == "error"


async def test_a_message_with_a_lone_surrogate_is_stored_all_the_same(place: Place) -> None:
    async def work(ctx: dict[str, Any]) -> None:
        raise JobFailed("bad", "lone \ud800 surrogate")

    worker = await place.worker(work)
    record = await place.end(await place.submit())
    assert error_of(record) == ("bad", "lone ? surrogate")
    await until(lambda: not worker.running, "the slot is free again")


async def test_a_failing_hook_fails_the_run_and_not_the_worker(place: Place) -> None:
    async def broken(ctx: dict[str, Any]) -> None:
        if ctx["job"].spec.input:
            raise RuntimeError("hook")

    async def work(ctx: dict[str, Any], **_: Any) -> None: ...

    await place.worker(work, on_job_start=broken)
    assert (await place.end(await place.submit(input={"a": 1}, max_attempts=1))).status == "failed"
    assert (await place.end(await place.submit())).status == "completed"


async def test_a_broken_script_answer_keeps_the_worker_and_its_slots(place: Place, settings: Settings) -> None:
    # An entry whose record is gone is parked, and never reaches a job function.
    lost = await place.submit()
    await place.queue.redis.delete(place.queue.keys.job(lost))
    gate = Gate()
    gate.open.set()
    worker = await place.worker(gate.function)
    job = await place.submit()
    assert (await place.end(job)).status == "completed"
    assert gate.started == [job]
    assert [parked.reason for parked in await place.results.parked()] == ["orphan: no record of this job"]
    assert not worker.running
    assert (await place.results.queues())[0].queue == QUEUE


async def test_nothing_is_left_in_redis_of_the_place_of_finished_jobs(place: Place) -> None:
    async def work(ctx: dict[str, Any], job: ClaimedJob) -> None: ...

    await place.worker(work, max_jobs=10)
    await place.ends(await place.submit_many(50))
    await until(lambda: not place.workers[0][0].running, "all slots are free")
    assert await place.leases() == 0
    assert [key async for key in place.queue.redis.scan_iter(match="*:u:*")] == []
