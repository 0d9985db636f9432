"""SIGTERM: short jobs finish, long ones go elsewhere at once, nothing is lost. Acceptance test 5."""

from __future__ import annotations

import asyncio
import signal
import time

from common.states import State
from tests.faults.conftest import FULL
from tests.faults.formation import WORK, Formation
from tests.waiting import until


async def test_5_sigterm_lets_short_jobs_finish_and_gives_long_ones_back(formation: Formation) -> None:
    grace_s = 3
    held = formation.folder / "held"
    held.touch()
    draining = formation.start(*WORK, slots=4, grace_s=grace_s)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    shorts = await formation.submit(2, input={"do": "hold", "file": str(held)})
    longs = await formation.submit(2, input={"s": 60})
    for job in shorts + longs:
        await formation.started(job)
    other = formation.start(*WORK, slots=4)
    await formation.workers("work:test", 2)
    started = time.monotonic()
    ending = asyncio.create_task(draining.end(signal.SIGTERM))
    await formation.says(draining, "draining")
    held.unlink()
    assert await ending == 0
    assert time.monotonic() - started < grace_s + 2
    gone_at = time.time()
    for record in await formation.ends(shorts):
        assert (record.status, record.claims) == (State.COMPLETED, 1)
    for job in longs:
        await formation.started(job, times=2, deadline_s=5)
        assert formation.ledger.starts(job)[1].at - gone_at < 1
        record = await formation.results.record(job)
        assert (record.status, record.claims, record.attempts) == (State.IN_PROGRESS, 2, 0)
        await formation.queue.cancel(job)
    assert await other.end() == 0


async def test_5_a_second_sigterm_ends_the_grace(formation: Formation) -> None:
    draining = formation.start(*WORK, slots=1, grace_s=60)
    await formation.workers("work:test", 1)
    [job] = await formation.submit(input={"s": 60})
    await formation.started(job)
    formation.start(*WORK, slots=1)
    await formation.workers("work:test", 2)
    draining.again = False
    draining.send(signal.SIGTERM)
    await formation.says(draining, "draining")
    asked = time.time()
    draining.send(signal.SIGTERM)
    await formation.started(job, times=2, deadline_s=10)
    assert formation.ledger.starts(job)[1].at - asked < 1
    await until(lambda: draining.exits == [0], "it has ended with 0", deadline_s=5)
    assert (await formation.results.record(job)).attempts == 0


async def test_5_rolling_restarts_lose_nothing(formation: Formation) -> None:
    workers = [formation.start(*WORK, slots=4, grace_s=0.5) for _ in range(2)]
    await formation.scheduler()
    await formation.workers("work:test", 2)
    restarts = 50 if FULL else 4
    jobs = await formation.submit(restarts * 10, input={"s": 0.4})
    for number in range(restarts):
        worker = workers[number % 2]
        exits = len(worker.exits)
        worker.send(signal.SIGTERM)
        await until(lambda worker=worker, exits=exits: len(worker.exits) > exits, "it has ended")  # type: ignore[misc]
        await formation.workers("work:test", 1)
        await asyncio.sleep(0.2)
    records = await formation.ends(jobs)
    assert {record.status for record in records} == {State.COMPLETED}
    assert {record.attempts for record in records} == {0}
    assert {code for worker in workers for code in worker.exits} == {0}
    assert {end.job for end in formation.ledger.ends()} == set(jobs)
