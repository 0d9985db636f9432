"""A worker never holds more than it has slots for, and what it holds it runs."""

from __future__ import annotations

import asyncio
from typing import Any

from common.scripts import execute
from common.states import State
from tests.waiting import until
from tests.worker.place import QUEUE, Gate, Place


async def test_a_worker_holds_no_more_leases_than_slots(place: Place) -> None:
    most_leases = done = 0

    async def work(ctx: dict[str, Any]) -> None:
        nonlocal most_leases, done
        most_leases = max(most_leases, await place.leases())
        done += 1

    jobs = await place.submit_many(200)
    worker = await place.worker(work, max_jobs=5)
    await place.ends(jobs)
    assert done == 200
    assert 0 < most_leases <= 5
    await until(lambda: not worker.running, "all slots are free")


async def test_all_slots_are_used_and_the_rest_waits(place: Place) -> None:
    gate = Gate()
    await place.submit_many(12)
    await place.worker(gate.function, max_jobs=7)
    await until(lambda: gate.now == 7, "all slots are in use")
    await asyncio.sleep(0.2)  # time in which a fault would show
    assert await place.leases() == 7
    gate.open.set()
    await until(lambda: len(gate.started) == 12, "the rest")
    assert gate.most == 7


async def test_jobs_are_claimed_in_chunks_of_a_third_of_the_slots(place: Place) -> None:
    gate = Gate()
    gate.open.set()
    wants: list[int] = []
    jobs = await place.submit_many(200)
    worker = place.make(gate.function, max_jobs=60, burst=True)
    worker_main = asyncio.create_task(worker.async_run())
    await until(lambda: hasattr(worker, "queue"), "the worker has a queue")
    claim = worker.queue.claim

    async def noted(queue: str, name: str, count: int, request: int, most: int) -> Any:
        wants.append(count)
        return await claim(queue, name, count, request, most)

    worker.queue.claim = noted  # type: ignore[method-assign, assignment]
    await place.ends(jobs)
    await worker_main
    await worker.close()
    assert max(wants) == 20


async def test_one_slot_is_enough(place: Place) -> None:
    gate = Gate()
    gate.open.set()
    jobs = await place.submit_many(5)
    await place.worker(gate.function, max_jobs=1)
    await place.ends(jobs)
    assert gate.most == 1


async def test_a_slot_is_free_only_when_the_end_of_its_job_is_stored(place: Place) -> None:
    gate = Gate()
    gate.open.set()
    worker = await place.worker(gate.function, max_jobs=1)
    held = asyncio.Event()
    turn = worker.queue.commit_and_claim

    async def slow(*args: Any) -> Any:
        await held.wait()
        return await turn(*args)

    worker.queue.commit_and_claim = slow  # type: ignore[method-assign, assignment]
    jobs = await place.submit_many(2)
    await until(lambda: len(gate.started) == 1, "the first job")
    await asyncio.sleep(0.2)  # time in which a fault would show
    assert gate.started == jobs[:1]
    assert await place.leases() == 1
    held.set()
    await place.ends(jobs)


async def test_slots_that_ends_make_free_are_filled_by_the_call_that_stores_them(place: Place) -> None:
    gate = Gate()
    jobs = await place.submit_many(9)
    worker = await place.worker(gate.function, max_jobs=3)
    await until(lambda: gate.now == 3, "all slots are taken")
    claimed: list[Any] = []
    claim = worker.queue.claim

    async def noted(*args: Any) -> Any:
        found = await claim(*args)
        claimed.extend(found)
        return found

    worker.queue.claim = noted  # type: ignore[method-assign, assignment]
    gate.open.set()
    await place.ends(jobs)
    assert claimed == []


async def test_jobs_that_end_together_are_followed_by_jobs_that_begin_together(place: Place) -> None:
    """An engine that computes all that is there in one pass would make two passes of a slotful that comes in parts."""
    waiting: list[asyncio.Future[None]] = []
    some_wait = asyncio.Event()
    passes: list[int] = []

    async def work(ctx: dict[str, Any]) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        some_wait.set()
        await waiting[-1]

    async def engine() -> None:
        while sum(passes) < 40:
            await some_wait.wait()
            some_wait.clear()
            some, waiting[:] = waiting[:], []
            passes.append(len(some))
            await asyncio.sleep(0.02)  # what computing them takes
            for one in some:
                one.set_result(None)

    jobs = await place.submit_many(40)
    await place.worker(work, max_jobs=10)
    await asyncio.gather(engine(), place.ends(jobs))
    assert passes == [10, 10, 10, 10]


async def test_turns_of_short_jobs_take_no_more_than_there_is_room_for(place: Place) -> None:
    gate = Gate()
    meta = {"pace:jobs": 100, "pace:units": 0, "pace:gpu": 1, "stretch": 100_000}  # short ones, and always some
    await place.queue.redis.hset(f"{place.queue.keys.queue(QUEUE)}meta", mapping=meta)  # type: ignore[misc]
    for n in range(200):
        await place.submit(user=f"user-{n % 2}")
    await place.worker(gate.function, max_jobs=50)
    await until(lambda: gate.now >= 50, "all slots are in use")
    await asyncio.sleep(0.2)  # time in which a fault would show
    assert gate.most == 50
    assert await place.leases() == 50
    gate.open.set()
    await until(lambda: len(gate.started) == 200, "the rest")
    assert gate.most == 50


async def test_a_job_whose_workers_died_runs_alone_before_it_is_parked(place: Place) -> None:
    beside: dict[str, int] = {}
    now = 0

    async def work(ctx: dict[str, Any], s: float = 0.05) -> None:
        nonlocal now
        now += 1
        beside[ctx["job_id"]] = now
        await asyncio.sleep(s)
        now -= 1

    leases = f"{place.queue.keys.queue(QUEUE)}leases"
    suspects = await place.submit_many(3)
    for request in (1, 2):  # two workers die with them
        if request == 2:
            await place.queue.rescue(place.queue.keys.of_queue(QUEUE))
        died = await place.queue.claim(QUEUE, f"dead {request}", 3, request)
        assert {job.id for job in died} == set(suspects)
        await execute(place.queue.redis, "ZADD", leases, *[part for job in died for part in (1, job.lease)])
    busy = await place.submit(input={"s": 0.4})
    worker = await place.worker(work, max_jobs=6)
    await until(lambda: now == 1, "the worker is busy")
    assert (await place.queue.rescue(place.queue.keys.of_queue(QUEUE))).moved == 3
    others = await place.submit_many(12)
    records = await place.ends([*suspects, busy, *others])
    assert {record.status for record in records} == {State.COMPLETED}
    assert [beside[job] for job in suspects] == [1, 1, 1]
    assert max(beside.values()) > 1, "the others did not wait for each other"
    await until(lambda: not worker.running, "all slots are free")


async def test_an_idle_worker_is_woken_by_the_bell(place: Place) -> None:
    gate = Gate()
    gate.open.set()
    await place.worker(gate.function)
    await place.end(await place.submit())
    loop = asyncio.get_running_loop()
    took: list[float] = []
    for _ in range(10):
        started = loop.time()
        await place.end(await place.submit())
        took.append(loop.time() - started)
    assert sorted(took)[5] < 0.1, took


async def test_a_worker_takes_no_more_than_its_engine_admits(place: Place) -> None:
    """Down at once, as jobs end; up again within about a second; never above its slots."""
    gate = Gate()
    admits = 3
    jobs = await place.submit_many(20)
    worker = await place.worker(gate.function, max_jobs=8, ctx={"admits": lambda: admits})
    await until(lambda: gate.now == 3, "as many as are admitted run")
    admits = 100
    await until(lambda: gate.now == 8, "all slots are used again", deadline_s=3)
    admits = 2
    gate.most = 0
    gate.open.set()
    gate.open = asyncio.Event()
    await until(lambda: gate.now == 2, "fewer are admitted")
    gate.open.set()
    await place.ends(jobs)
    assert (worker.jobs_complete, worker.running) == (20, {})
    assert gate.most <= 8


async def test_commits_do_not_fill_slots_that_the_engine_does_not_admit(place: Place) -> None:
    """The claim that rides on a commit must not take what `admits` forbids."""
    most = now = 0

    async def work(ctx: dict[str, Any]) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    jobs = await place.submit_many(100)
    await place.worker(work, max_jobs=8, ctx={"admits": lambda: 3})
    await place.ends(jobs)
    assert 1 <= most <= 3
