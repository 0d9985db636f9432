"""Why a running job is stopped before its end: cancel, lost lease, timeout, drain. Each reaches the function."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from typing import Any

import pytest

from common.connections import MUCH
from common.jobs import ClaimedJob
from common.scripts import execute
from tests.waiting import until
from tests.worker.place import QUEUE, Gate, Place


async def test_a_cancel_reaches_the_function_in_less_than_100_ms(place: Place) -> None:
    stopped_at = 0.0
    running = asyncio.Event()
    stopped = asyncio.Event()

    async def work(ctx: dict[str, Any]) -> None:
        nonlocal stopped_at
        running.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped_at = time.monotonic()
            stopped.set()
            raise

    await place.worker(work)
    took = []
    for _ in range(50):
        running.clear()
        stopped.clear()
        job = await place.submit()
        await asyncio.wait_for(running.wait(), 5)
        asked = time.monotonic()
        await place.queue.cancel(job)
        await asyncio.wait_for(stopped.wait(), 5)
        took.append(stopped_at - asked)
        assert (await place.record(job)).status == "cancelled"
    assert max(took) < 0.5, took
    assert statistics.quantiles(took, n=20)[18] < 0.1, took


async def test_a_cancelled_job_frees_its_slot_and_changes_no_more(place: Place) -> None:
    gate = Gate()
    worker = await place.worker(gate.function, max_jobs=1)
    job = await place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await place.queue.cancel(job)
    await until(lambda: not worker.running, "the slot is free")
    gate.open.set()
    assert (await place.end(await place.submit())).status == "completed"
    record = await place.record(job)
    assert (record.status, record.attempts) == ("cancelled", 0)
    assert worker.jobs_failed == 0


async def test_a_cancel_that_meets_the_claim_costs_no_slot(place: Place) -> None:
    gate = Gate()
    worker = await place.worker(gate.function, max_jobs=1)
    start = worker._start

    def start_and_stop(job: ClaimedJob) -> None:
        start(job)
        worker.running[job.lease].stop("cancelled")  # before the task has made its first step

    worker._start = start_and_stop  # type: ignore[method-assign]
    job = await place.submit()
    await until(lambda: place.queue is not None and worker.running == {} and gate.stopped != [], "it is stopped")
    await place.queue.cancel(job)
    worker._start = start  # type: ignore[method-assign]
    gate.open.set()
    assert (await place.end(await place.submit())).status == "completed"


async def test_a_function_that_ignores_its_cancel_stores_nothing(place: Place) -> None:
    gate = Gate()

    async def stubborn(ctx: dict[str, Any]) -> str:
        try:
            return str(await gate.function(ctx))
        except asyncio.CancelledError:
            return "all the same"

    worker = await place.worker(stubborn)
    job = await place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await place.queue.cancel(job)
    await until(lambda: worker.stale == 1, "its end is refused")
    assert (await place.record(job)).status == "cancelled"
    assert not worker.running


async def test_a_lost_lease_stops_the_work_and_another_worker_finishes_it(place: Place) -> None:
    first, second = Gate(), Gate()
    second.open.set()
    worker = await place.worker(first.function, max_jobs=1)
    job = await place.submit()
    await until(lambda: first.now == 1, "it runs")
    # As if the lease had ended while this worker was silent.
    await execute(place.queue.redis, "ZADD", f"{place.queue.keys.queue(QUEUE)}leases", 1, next(iter(worker.running)))
    assert (await place.queue.rescue(place.queue.keys.of_queue(QUEUE))).moved == 1
    await place.worker(second.function)
    took = await until(lambda: first.stopped == [job], "the first run is stopped", deadline_s=5)
    assert took < place.settings.lease_s / 4 + 1
    record = await place.end(job)
    assert (record.status, record.claims, record.attempts) == ("completed", 2, 0)
    await until(lambda: not worker.running, "the slot is free")
    assert worker.jobs_complete + worker.jobs_failed + worker.jobs_retried <= 1


async def test_the_commit_of_a_stale_run_changes_nothing(place: Place) -> None:
    gate = Gate()
    ended = asyncio.Event()

    async def stubborn(ctx: dict[str, Any]) -> str:
        try:
            return str(await gate.function(ctx))
        except asyncio.CancelledError:
            await ended.wait()
            return "stale"

    stale = await place.worker(stubborn, max_jobs=1)
    job = await place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await execute(place.queue.redis, "ZADD", f"{place.queue.keys.queue(QUEUE)}leases", 1, next(iter(stale.running)))
    await place.queue.rescue(place.queue.keys.of_queue(QUEUE))
    fresh = Gate()
    await place.worker(fresh.function)
    await until(lambda: fresh.now == 1, "another worker runs it")
    ended.set()
    await until(lambda: stale.stale == 1, "the stale end is refused")
    assert (await place.record(job)).status == "in_progress"
    fresh.open.set()
    await place.end(job)
    assert await place.output(job) == {"value": "held"}


async def test_a_drain_lets_short_jobs_finish_and_takes_no_more(place: Place) -> None:
    started: list[str] = []

    async def short(ctx: dict[str, Any]) -> str:
        started.append(ctx["job_id"])
        await asyncio.sleep(0.5)
        return "finished"

    worker = await place.worker(short, max_jobs=10)
    jobs = await place.submit_many(40)
    await until(lambda: len(started) >= 20, "the second round")
    worker.handle_sig(signal.SIGTERM)
    running = len(worker.running)
    await asyncio.wait_for(place.workers[0][1], 5)
    ends = [str((await place.record(job)).status) for job in jobs]
    assert ends.count("completed") == len(started) <= 20 + running
    assert ends.count("queued") == 40 - len(started)
    assert not worker.running


@pytest.mark.parametrize("way", ["one call", "a pipeline"])
async def test_a_cancel_that_comes_as_a_write_ends_is_not_swallowed(place: Place, way: str) -> None:
    # asyncio.wait_for does that before Python 3.12, and redis-py writes with it: a drain then hung for ever.
    client = place.queue.redis
    await execute(client, "PING")
    connection = client.connection_pool._available_connections[0]
    large = "nothing" * MUCH  # one that is not sent at once
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.blpop([large], 1)
    call = execute(client, "BLPOP", large, 1) if way == "one call" else pipeline.execute()
    task = asyncio.create_task(call)
    writer = connection._writer
    assert writer is not None

    async def drained() -> None:
        task.cancel()

    writer.drain = drained  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_drain_gives_a_long_job_back_without_counting_an_attempt(place: Place) -> None:
    first, second = Gate(), Gate()
    second.open.set()
    worker = await place.worker(first.function, job_completion_wait=1)
    job = await place.submit()
    await until(lambda: first.now == 1, "it runs")
    worker.handle_sig(signal.SIGTERM)
    started = time.monotonic()
    await asyncio.wait_for(place.workers[0][1], 5)
    assert 0.9 < time.monotonic() - started < 2
    record = await place.record(job)
    assert (record.status, record.attempts, record.claims) == ("queued", 0, 1)
    await place.worker(second.function)
    record = await place.end(job)
    assert (record.status, record.attempts, record.claims) == ("completed", 0, 2)


async def test_a_second_signal_ends_the_grace_and_another_worker_has_the_job_within_a_second(place: Place) -> None:
    first, second = Gate(), Gate()
    second.open.set()
    worker = await place.worker(first.function, max_jobs=1, job_completion_wait=60)
    job = await place.submit()
    await until(lambda: first.now == 1, "it runs")
    await place.worker(second.function)
    worker.handle_sig(signal.SIGTERM)
    await asyncio.sleep(0.1)
    assert first.now == 1
    worker.handle_sig(signal.SIGTERM)
    took = await until(lambda: second.started == [job], "it runs elsewhere")
    assert took < 1
    assert (await place.end(job)).attempts == 0


async def test_no_grace_gives_running_jobs_back_at_once(place: Place) -> None:
    gate = Gate()
    worker = await place.worker(gate.function, job_completion_wait=0)
    job = await place.submit()
    await until(lambda: gate.now == 1, "it runs")
    worker.handle_sig(signal.SIGTERM)
    await asyncio.wait_for(place.workers[0][1], 2)
    assert (await place.record(job)).status == "queued"


async def test_a_function_that_ignores_the_drain_does_not_hold_the_worker_for_ever(place: Place) -> None:
    let_go = asyncio.Event()
    running = asyncio.Event()

    async def stubborn(ctx: dict[str, Any]) -> None:
        running.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    worker = await place.worker(stubborn, job_completion_wait=0)
    await place.submit()
    await running.wait()
    worker.handle_sig(signal.SIGTERM)
    await asyncio.wait_for(place.workers[0][1], place.settings.redis_timeout_s + 2)
    let_go.set()


async def test_a_signal_while_the_engine_loads_ends_the_worker(place: Place) -> None:
    loading = asyncio.Event()
    heard: list[signal.Signals] = []

    async def on_startup(ctx: dict[str, Any]) -> None:
        loading.set()
        await asyncio.sleep(60)

    worker = place.make(Gate().function, on_startup=on_startup)
    worker.on_stop = heard.append
    worker_main = asyncio.create_task(worker.async_run())
    await loading.wait()
    worker.handle_sig(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await worker_main
    assert heard == [signal.SIGTERM]
    await worker.close()
    await worker.close()  # twice is once
