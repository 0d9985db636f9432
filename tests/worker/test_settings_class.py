"""What an arq user writes in a settings class, and what they find it does."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from arq import cron
from arq.connections import RedisSettings
from arq.worker import FailedJobs, Retry, func

from common.jobs import ClaimedJob, JobResult
from common.settings import Settings
from tests.waiting import until
from tests.worker.place import KIND, MODEL, QUEUE, Gate, Place
from workers.settings_class import get_kwargs
from workers.worker import Worker, create_worker, run_worker


async def add(ctx: dict[str, Any], a: int, b: int) -> int:
    return a + b


async def test_a_plain_function_gets_the_fields_of_the_input_by_name(place: Place) -> None:
    await place.worker(functions=[add])
    job = await place.submit(function="add", input={"a": 2, "b": 3})
    await place.end(job)
    assert await place.output(job) == {"value": 5}


async def test_func_gives_a_function_another_name(place: Place) -> None:
    await place.worker(functions=[func(add, name=KIND)])
    job = await place.submit(input={"a": 2, "b": 3})
    await place.end(job)
    assert await place.output(job) == {"value": 5}


async def test_a_function_with_a_job_parameter_gets_the_claimed_job(place: Place) -> None:
    async def shout(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
        assert ctx["job"].id == ctx["job_id"] == job.id
        return JobResult({"text": job.spec.input["text"].upper()}, {"total_tokens": 1})

    await place.worker(shout)
    job = await place.submit(input={"text": "hello"})
    record = await place.end(job)
    assert record.usage == {"total_tokens": 1}
    assert await place.output(job) == {"text": "HELLO"}


async def test_hooks_run_in_arqs_order_and_share_a_jobs_ctx(place: Place) -> None:
    heard: list[str] = []
    seen: list[Any] = []

    def hook(name: str) -> Any:
        async def heard_it(ctx: dict[str, Any]) -> None:
            heard.append(name)
            if name == "on_job_start":
                ctx["mine"] = "of this job"
            seen.append((ctx.get("mine"), ctx.get("job_try")))

        return heard_it

    async def work(ctx: dict[str, Any]) -> None:
        heard.append("work")

    names = ("on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end")
    worker = await place.worker(work, **{name: hook(name) for name in names})
    await place.end(await place.submit())
    await until(lambda: "after_job_end" in heard, "the last hook of the job")
    await place.stop(*place.workers[0])
    assert heard == ["on_startup", "on_job_start", "work", "on_job_end", "after_job_end", "on_shutdown"]
    assert seen[1:4] == [("of this job", 1)] * 3
    assert "mine" not in worker.ctx


async def test_on_job_end_also_hears_of_a_job_that_failed(place: Place) -> None:
    ended: list[str] = []

    async def on_job_end(ctx: dict[str, Any]) -> None:
        ended.append(ctx["job_id"])

    async def fail(ctx: dict[str, Any]) -> None:
        raise ValueError("no")

    await place.worker(fail, on_job_end=on_job_end)
    job = await place.submit(max_attempts=1)
    assert (await place.end(job)).status == "failed"
    assert ended == [job]


async def test_ctx_has_what_on_startup_put_there_and_a_job_does_not_change_it(place: Place) -> None:
    async def on_startup(ctx: dict[str, Any]) -> None:
        ctx["engine"] = "started"

    async def work(ctx: dict[str, Any]) -> list[str]:
        ctx["own"] = 1
        return [ctx["engine"], ctx["given"]]

    worker = await place.worker(work, on_startup=on_startup, ctx={"given": "by the class"})
    job = await place.submit()
    await place.end(job)
    assert await place.output(job) == {"value": ["started", "by the class"]}
    assert "own" not in worker.ctx


async def test_a_burst_worker_runs_what_there_is_and_ends(place: Place) -> None:
    jobs = await place.submit_many(5, function="add", input={"a": 1, "b": 1})
    worker = place.make(functions=[add], burst=True)
    await asyncio.wait_for(worker.async_run(), 20)
    await worker.close()
    assert worker.jobs_complete == 5
    assert {record.status for record in await place.ends(jobs)} == {"completed"}


async def test_max_burst_jobs_ends_the_worker_after_so_many(place: Place) -> None:
    await place.submit_many(5, function="add", input={"a": 1, "b": 1})
    worker = place.make(functions=[add], burst=True, max_burst_jobs=3)
    await asyncio.wait_for(worker.async_run(), 20)
    await worker.close()
    assert worker.jobs_complete == 3
    assert sum((await place.results.queues())[0].depth.values()) == 2


async def test_max_burst_jobs_waits_for_a_job_longer_than_the_grace(place: Place) -> None:
    async def slow(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(1.5)

    job = await place.submit()
    worker = place.make(slow, burst=True, max_burst_jobs=1, job_completion_wait=1)
    await asyncio.wait_for(worker.async_run(), 20)
    await worker.close()
    assert (await place.record(job)).status == "completed"


async def test_run_check_returns_the_number_of_completed_jobs(place: Place) -> None:
    await place.submit_many(3, function="add", input={"a": 1, "b": 1})
    worker = place.make(functions=[add], burst=True)
    assert await worker.run_check(max_burst_jobs=2) == 2
    await worker.close()


async def test_run_check_raises_when_a_job_failed(place: Place) -> None:
    async def fail(ctx: dict[str, Any]) -> None:
        raise ValueError("no")

    await place.submit(max_attempts=1)
    worker = place.make(fail, burst=True)
    with pytest.raises(FailedJobs, match="1 jobs failed"):
        await worker.run_check()
    await worker.close()


async def test_retry_runs_the_job_again_after_its_pause(place: Place) -> None:
    place.schedule()
    tries: list[tuple[int, float]] = []

    async def twice(ctx: dict[str, Any]) -> str:
        tries.append((ctx["job_try"], asyncio.get_running_loop().time()))
        if ctx["job_try"] == 1:
            raise Retry(defer=0.5)
        return "second"

    worker = await place.worker(twice)
    job = await place.submit()
    record = await place.end(job)
    assert record.status == "completed"
    assert record.attempts == 1
    assert [number for number, _ in tries] == [1, 2]
    assert 0.5 <= tries[1][1] - tries[0][1] < 3
    assert worker.jobs_retried == 1
    assert worker.jobs_complete == 1


async def test_retry_without_a_pause_backs_off_and_ends_at_the_last_attempt(place: Place) -> None:
    place.schedule()

    async def again(ctx: dict[str, Any]) -> None:
        raise Retry

    await place.worker(again)
    record = await place.end(await place.submit(max_attempts=2))
    assert (record.status, record.attempts) == ("failed", 2)
    assert record.error is not None
    assert record.error.code == "retry"


async def test_the_timeout_of_func_ends_a_run(place: Place) -> None:
    async def slow(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(30)

    await place.worker(functions=[func(slow, name=KIND, timeout=0.2)])
    record = await place.end(await place.submit())
    assert record.error is not None
    assert record.error.code == "timeout"
    assert record.run_ms is not None
    assert record.run_ms < 3000


async def test_max_tries_of_func_bounds_the_attempts(place: Place) -> None:
    place.schedule()
    tries = 0

    async def fail(ctx: dict[str, Any]) -> None:
        nonlocal tries
        tries += 1
        raise ValueError("no")

    await place.worker(functions=[func(fail, name=KIND, max_tries=1)])
    record = await place.end(await place.submit(max_attempts=3))
    assert record.status == "failed"
    assert tries == 1


async def test_a_cron_job_on_two_workers_runs_once_a_tick(place: Place) -> None:
    runs: list[datetime] = []

    async def tick(ctx: dict[str, Any]) -> None:
        runs.append(datetime.now())

    every_second = set(range(60))
    for _ in range(2):
        await place.worker(cron_jobs=[cron(tick, second=every_second, microsecond=0)])
    await until(lambda: len(runs) >= 4, "four ticks")
    seconds = [run.replace(microsecond=0) for run in runs]
    assert len(set(seconds)) == len(seconds), "a tick ran twice"
    assert seconds[-1] - seconds[0] == timedelta(seconds=len(seconds) - 1), "a tick was left out"


async def test_a_cron_job_with_run_at_startup_runs_when_the_worker_starts(place: Place) -> None:
    ran = asyncio.Event()

    async def tick(ctx: dict[str, Any]) -> None:
        ran.set()

    await place.worker(cron_jobs=[cron(tick, month=1, day=1, hour=1, run_at_startup=True)])
    await asyncio.wait_for(ran.wait(), 10)


async def test_a_cron_job_that_fails_is_not_run_again_before_its_next_tick(place: Place) -> None:
    place.schedule()
    runs = 0

    async def tick(ctx: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        raise ValueError("no")

    worker = await place.worker(cron_jobs=[cron(tick, month=1, day=1, hour=1, run_at_startup=True)])
    await until(lambda: worker.jobs_failed == 1, "the cron job has failed")
    assert runs == 1


async def test_cron_jobs_outlive_a_full_queue(
    place: Place, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ran = asyncio.Event()
    gate = Gate()

    async def tick(ctx: dict[str, Any]) -> None:
        ran.set()

    await place.submit_many(2)  # one runs, one waits: with a bound of 1 the queue is full
    bounded = settings.model_copy(update={"max_depth": 1})
    each_second = cron(tick, second=set(range(60)))
    await place.worker(gate.function, cron_jobs=[each_second], settings=bounded, max_jobs=1)
    await until(lambda: "is left out" in caplog.text, "a tick is left out")
    gate.open.set()
    await asyncio.wait_for(ran.wait(), 20)


class Base:
    queue_name = QUEUE
    max_jobs = 7


class ArqStyle(Base):
    functions = (add,)
    redis_settings = RedisSettings(host="127.0.0.9", port=1234, database=3, password="p@ss/word")
    handle_signals = False
    unknown_to_arq = 1


async def test_a_settings_class_is_read_with_its_bases() -> None:
    given = get_kwargs(ArqStyle)
    assert given["max_jobs"] == 7
    assert "unknown_to_arq" not in given
    worker = create_worker(ArqStyle, max_jobs=9)
    assert worker.max_jobs == 9
    assert worker.queue_name == f"{KIND}:{MODEL}"


async def test_redis_settings_of_a_class_say_where_redis_is() -> None:
    url = create_worker(ArqStyle).settings.redis_url
    assert url == "redis://:p%40ss%2Fword@127.0.0.9:1234/3"


async def test_redis_settings_with_a_user_and_tls_are_kept() -> None:
    given = RedisSettings(host="redis.example", username="me", password="secret", ssl=True)
    worker = Worker([add], redis_settings=given, handle_signals=False)
    assert worker.settings.redis_url == "rediss://me:secret@redis.example:6379/0"


async def test_a_dictionary_is_as_good_as_a_class() -> None:
    assert get_kwargs({"functions": (add,), "max_jobs": 2, "other": 1}) == {"functions": (add,), "max_jobs": 2}


async def test_nothing_is_ever_pickled_by_arqs_serializer() -> None:
    worker = create_worker(ArqStyle)
    assert worker.job_serializer is not None
    assert worker.job_serializer({"a": 1}) == b'{"a":1}'
    assert worker.job_deserializer is not None
    with pytest.raises(ValueError, match="malformed"):
        worker.job_deserializer(b"\x80\x04N.")


def test_run_worker_makes_a_worker_and_runs_it_to_its_end(settings: Settings, inline_beat: None) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        worker = run_worker(ArqStyle, settings=settings, redis_settings=None, burst=True)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert worker.jobs_complete == 0
    assert worker._pool is None, "it closed its connections"
