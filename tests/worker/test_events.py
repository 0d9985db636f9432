"""Events that a job emits: in order, once, before its end, and only while the lease is its worker's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import workers.outbox
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult
from common.queue import Emitted, Event
from common.scripts import execute
from tests.waiting import until
from tests.worker.place import Place


def texts(events: list[Any]) -> list[str]:
    return [event.data["text"] for event in events if event.event == "token"]


async def test_events_are_numbered_in_order_between_the_states(place: Place) -> None:
    async def work(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
        for n in range(300):
            await ctx["emit"](job, "token", {"text": f"{n} ", "ids": [n]})
            if n % 50 == 0:
                await ctx["emit"](job, "progress", {"done": n})
                await asyncio.sleep(0.01)
        await ctx["emit"](job, "progress", {"done": 1})
        return JobResult({"text": "all"})

    await place.worker(work, max_jobs=4)
    jobs = await place.submit_many(6)
    await place.ends(jobs)
    for job in jobs:
        events = await place.results.events(job)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        # Tokens that wait for the writer become one event; none is lost, doubled or out of order.
        assert "".join(texts(events)) == "".join(f"{n} " for n in range(300))
        assert [n for event in events if event.event == "token" for n in event.data["ids"]] == list(range(300))
        done = [event.data["done"] for event in events if event.event == "progress"]
        assert done == [0, 50, 100, 150, 200, 250, 1]
        assert [event.data["status"] for event in events if event.event == "state"] == [
            "queued",
            "in_progress",
            "completed",
        ]
        assert events[-2].event == "progress"


async def test_tokens_of_different_answers_never_become_one_event(place: Place) -> None:
    async def work(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
        for n in range(60):
            data = {"text": "ab"[n // 20 % 2], "ids": [n], "index": n // 20 % 2, "logprobs": [n]}
            await ctx["emit"](job, "token", data | ({"reasoning": "r"} if n % 2 else {}))
        return JobResult({"text": "all"})

    await place.worker(work)
    job = await place.submit()
    await place.ends([job])
    tokens = [event.data for event in await place.results.events(job) if event.event == "token"]
    assert len(tokens) < 60
    for index, letter in enumerate("ab"):
        ours = [data for data in tokens if data["index"] == index]
        assert set("".join(data["text"] for data in ours)) == {letter}
    assert [n for data in tokens for n in data["logprobs"]] == list(range(60))
    assert "".join(data.get("reasoning", "") for data in tokens) == "r" * 30


async def test_a_follower_sees_what_the_worker_emits_while_it_runs(place: Place) -> None:
    go = asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        await ctx["emit"](job, "token", {"text": "first", "ids": [1]})
        await go.wait()
        await ctx["emit"](job, "token", {"text": "second", "ids": [2]})
        return "done"

    await place.worker(work)
    job = await place.submit()
    seen = []
    async for event in place.results.follow(job):
        seen.append(event)
        if texts([event]) == ["first"]:
            go.set()
    assert texts(seen) == ["first", "second"]
    assert [event.seq for event in seen] == [1, 2, 3, 4, 5]


async def test_a_reader_has_each_token_before_the_next_and_without_readers_tokens_share_writes(place: Place) -> None:
    read = asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob, waits: bool) -> str:
        for n in range(40):
            read.clear()
            await ctx["emit"](job, "token", {"text": f"{n} ", "ids": [n]})
            await (read.wait() if waits else asyncio.sleep(0.01))
        return "done"

    async def as_job(ctx: dict[str, Any], job: ClaimedJob) -> str:
        return await work(ctx, job, job.spec.input["waits"])

    await place.worker(as_job)
    unread = await place.submit(input={"waits": False})
    await place.end(unread)
    shared = texts(await place.results.events(unread))
    assert "".join(shared) == "".join(f"{n} " for n in range(40))
    assert len(shared) < 15, "40 tokens in at least 0.4 s, one write each quarter of a second"

    followed, seen = await place.submit(input={"waits": True}), []
    async with asyncio.timeout(40 * workers.outbox.UNREAD_S / 2):  # less than it takes when nobody seems to read
        async for event in place.results.follow(followed):
            seen.append(event)
            if event.event == "token":
                read.set()
    assert texts(seen) == [f"{n} " for n in range(40)]


async def test_events_of_a_job_that_nobody_reads_wait_the_longer_the_older_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most readers of a stream come with the job, but a moment after its first token when all is busy."""
    held: list[tuple[float, float]] = []  # (age of the job, how long its next event may wait), both in s
    began = 0.0

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        nonlocal began
        while time.monotonic() < (began or time.monotonic()) + 1.2:
            ctx["tell"](job, "token", {"text": ".", "ids": [0]})
            await asyncio.sleep(0.002)
        return "done"

    worker = await place.worker(work)
    hold_back = worker.outbox._hold_back

    def noted(unread: set[str], written: list[Event]) -> None:
        nonlocal began
        began = began or time.monotonic()
        hold_back(unread, written)
        held.extend((time.monotonic() - began, due - time.monotonic()) for due in worker.outbox._unread.values())

    monkeypatch.setattr(worker.outbox, "_hold_back", noted)
    await place.end(await place.submit())
    least_s, part = workers.outbox.LEAST_S, workers.outbox.YOUNG_PART
    assert all(wait_s <= max(least_s, age_s * part, 0) + 0.001 for age_s, wait_s in held)
    assert all(wait_s <= workers.outbox.UNREAD_S for _, wait_s in held)
    assert 6 < len(held) < 25, "seldom, all the same"
    assert worker.outbox._unread == worker.outbox._began == {}, "nothing stays of a job that has ended"


async def test_a_reader_who_comes_late_has_what_was_said_and_then_each_token(place: Place) -> None:
    read, halfway = asyncio.Event(), asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        for n in range(60):
            read.clear()
            await ctx["emit"](job, "token", {"text": f"{n} ", "ids": [n]})
            if n < 20:
                await asyncio.sleep(0.005)
                continue
            halfway.set()
            await read.wait()
        return "done"

    await place.worker(work)
    job = await place.submit()
    await halfway.wait()
    said = ""
    async with asyncio.timeout(40 * workers.outbox.UNREAD_S / 2):
        async for event in place.results.follow(job):
            said += event.data.get("text", "")
            if said.endswith(tuple(f"{n} " for n in range(20, 60))):
                read.set()
    assert said == "".join(f"{n} " for n in range(60))


async def test_an_engine_hears_whether_somebody_reads_what_it_tells(place: Place) -> None:
    """That decides whether its tokens come one by one; what was told before a reader came is told to him too."""
    heard, begun = [], asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        read, n = True, 0
        while read:  # until the first write has said that nobody does
            read, n = ctx["tell"](job, "token", {"text": f"{n} ", "ids": [n]}), n + 1
            await asyncio.sleep(0.001)
        begun.set()
        while not read:
            read, n = ctx["tell"](job, "token", {"text": f"{n} ", "ids": [n]}), n + 1
            await asyncio.sleep(0.001)
        heard.append(n)
        return "done"

    await place.worker(work)
    job = await place.submit()
    async with asyncio.timeout(10):
        await begun.wait()
        said = texts([event async for event in place.results.follow(job)])
    assert "".join(said) == "".join(f"{n} " for n in range(heard[0]))


async def test_events_of_a_lost_lease_are_not_written_and_stop_the_run(place: Place) -> None:
    stopped = asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> None:
        try:
            while True:
                await ctx["emit"](job, "token", {"text": "x", "ids": [1]})
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            stopped.set()
            raise

    worker = await place.worker(work)
    job = await place.submit()
    await place.status(job, "in_progress")
    # Another delivery of the same job, as after a rescue: what the first one writes now must be refused.
    key = place.queue.keys.job(job)
    another = "1q1000000000000 2p1000000000000 3q1000000000000 4p1000000000000"
    await execute(place.queue.redis, "HSET", key, "history", another)
    before = len(await place.results.events(job))
    await asyncio.wait_for(stopped.wait(), 5)
    await until(lambda: not worker.running, "the slot is free")
    assert len(await place.results.events(job)) <= before + 1


async def test_what_an_earlier_delivery_emitted_can_be_read(place: Place) -> None:
    place.schedule()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
        seen = await ctx["emitted"](job)
        await ctx["emit"](job, "token", {"text": f"t{job.claims}", "ids": [job.claims]})
        if job.claims == 1:
            raise JobFailed("flaky", "again", retryable=True, delay_s=0)
        return JobResult({"seen": seen})

    await place.worker(work)
    job = await place.submit()
    await place.end(job)
    assert await place.output(job) == {"seen": [{"text": "t1", "ids": [1]}]}
    events = await place.results.events(job)
    assert texts(events) == ["t1", "t2"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_an_event_that_cannot_be_encoded_uses_up_no_number(place: Place) -> None:
    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        with pytest.raises(TypeError):
            await ctx["emit"](job, "token", {"text": object()})
        await ctx["emit"](job, "token", {"text": "good", "ids": []})
        return "done"

    await place.worker(work)
    job = await place.submit()
    assert (await place.end(job)).status == "completed"
    events = await place.results.events(job)
    assert [event.seq for event in events] == [1, 2, 3, 4]


async def test_a_job_that_emits_faster_than_redis_takes_waits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.outbox, "EVENTS_WAITING", 100)
    emitted = 0
    redis_is_back = asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> None:
        nonlocal emitted
        for n in range(1000):
            await ctx["emit"](job, "progress", {"text": str(n)})
            emitted += 1
            await asyncio.sleep(0)

    worker = await place.worker(work)
    emit = worker.queue.emit

    async def slow(queue: str, events: list[Event]) -> Emitted:
        await redis_is_back.wait()
        return await emit(queue, events)

    worker.queue.emit = slow  # type: ignore[method-assign, assignment]
    job = await place.submit()
    await until(lambda: emitted > 50, "it emits")
    await asyncio.sleep(0.2)  # time in which a fault would show
    assert emitted <= 150
    redis_is_back.set()
    await place.end(job)
    assert emitted == 1000
    events = await place.results.events(job)
    assert [event.data["text"] for event in events if event.event == "progress"] == [str(n) for n in range(1000)]


async def test_an_event_for_a_job_that_is_not_running_here_is_dropped(place: Place) -> None:
    kept: list[ClaimedJob] = []

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> None:
        kept.append(job)

    worker = await place.worker(work)
    job = await place.submit()
    await place.end(job)
    await until(lambda: not worker.running, "the slot is free")
    await worker.emit(kept[0], "token", {"text": "late", "ids": []})
    assert texts(await place.results.events(job)) == []


async def told(ctx: dict[str, Any], job: ClaimedJob) -> str:
    for n in range(20):
        ctx["tell"](job, "token", {"text": f"{n} ", "ids": [n]})
        await asyncio.sleep(0.02)
    return "done"


async def test_of_a_job_whose_caller_waits_for_its_end_little_is_written_from_the_start(place: Place) -> None:
    worker = await place.worker(told)
    job = await place.submit(awaited="end")
    await place.end(job)
    written = texts(await place.results.events(job))
    assert "".join(written) == "".join(f"{n} " for n in range(20))
    assert len(written) <= 3, "0.4 s, one write each quarter of a second"
    assert worker.outbox._unread == worker.outbox._began == {}, "nothing stays of a job that has ended"


async def test_a_reader_of_a_job_whose_caller_waits_for_its_end_hears_the_rest_at_once(place: Place) -> None:
    read = asyncio.Event()

    async def work(ctx: dict[str, Any], job: ClaimedJob) -> str:
        for n in range(20):
            read.clear()
            ctx["tell"](job, "token", {"text": f"{n} ", "ids": [n]})
            await read.wait()
        return "done"

    await place.worker(work)
    job, seen = await place.submit(awaited="end"), []
    async with asyncio.timeout(20 * workers.outbox.UNREAD_S / 2):  # less than if each had to wait
        async for event in place.results.follow(job):
            seen.append(event)
            if event.event == "token":
                read.set()
    assert texts(seen) == [f"{n} " for n in range(20)]


@pytest.mark.parametrize(("coming_s", "at_once"), [(60.0, True), (0.0, False)])
async def test_a_job_whose_caller_comes_for_its_events_is_written_at_once_before_he_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, coming_s: float, at_once: bool
) -> None:
    monkeypatch.setattr(workers.outbox, "COMING_S", coming_s)
    worker = await place.worker(told)
    job = await place.submit(awaited="events")
    await place.end(job)
    written = texts(await place.results.events(job))
    assert "".join(written) == "".join(f"{n} " for n in range(20))
    assert (len(written) > 15) is at_once
    assert worker.outbox._coming == {}, "nothing stays of a job that has ended"
