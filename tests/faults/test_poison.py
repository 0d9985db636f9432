"""A job that kills its worker is parked, with its history, and nobody else's job suffers. Acceptance test 4."""

from __future__ import annotations

from pathlib import Path

from common.states import State
from tests.faults.formation import WORK, Formation
from tests.faults.handlers import CRASH, EAT


async def test_4_a_job_that_kills_its_worker_is_parked_after_three_deaths(formation: Formation) -> None:
    worker = formation.start(*WORK, slots=5)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    bait = formation.folder / "bait"
    bait.touch()
    neighbours = await formation.submit(25, input={"s": 0.01})
    [poison] = await formation.submit(input={"do": "poison", "file": str(bait)})
    neighbours += await formation.submit(25, input={"s": 0.01})
    [record] = await formation.ends([poison])
    assert record.status == State.FAILED
    assert record.error is not None
    assert record.error.code == "poisoned"
    assert (record.claims, record.attempts) == (3, 0)
    assert len(formation.ledger.starts(poison)) == 3
    assert worker.exits == [-9] * 3
    assert {one.status for one in await formation.ends(neighbours)} == {State.COMPLETED}
    [parked] = await formation.results.parked()
    assert (parked.id, parked.queue) == (poison, "work:test")
    assert "3 times" in parked.reason

    bait.unlink()
    replayed = await formation.queue.replay(poison)
    [record] = await formation.ends([replayed.id])
    assert (record.status, record.retry_of) == (State.COMPLETED, poison)
    assert await formation.results.parked() == []
    assert (await formation.results.record(poison)).status == State.FAILED, "the old record stays"


async def test_4_children_that_crash_or_run_out_of_memory_cost_attempts_and_no_worker(formation: Formation) -> None:
    worker = formation.start(*WORK)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    [crash] = await formation.submit(input={"do": "child", "code": CRASH}, max_attempts=2)
    [child_memory] = await formation.submit(input={"do": "child", "code": EAT}, max_attempts=2)
    [own_memory] = await formation.submit(input={"do": "eat"}, max_attempts=2)
    neighbours = await formation.submit(10)
    for job, code in ((crash, "child_died"), (child_memory, "child_died"), (own_memory, "error")):
        [record] = await formation.ends([job])
        assert record.error is not None
        assert (record.status, record.attempts, record.error.code) == (State.FAILED, 2, code)
    assert {one.status for one in await formation.ends(neighbours)} == {State.COMPLETED}
    assert worker.exits == []


async def test_a_claim_nobody_started_is_no_death(formation: Formation, tmp_path: Path) -> None:
    # A reply lost for good (its worker is gone): the job comes back, and is far from being parked.
    await formation.scheduler()
    [job] = await formation.submit()
    assert len(await formation.queue.claim("work:test", "a worker that dies at once", 1, 1)) == 1
    formation.start(*WORK)
    [record] = await formation.ends([job])
    assert (record.status, record.claims) == (State.COMPLETED, 2)
