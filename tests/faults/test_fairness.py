"""Lanes and owners' bounds with real workers, some of them killed. Acceptance test 10."""

from __future__ import annotations

import asyncio
import random

from common.limits import Policy
from common.policies import Policies
from common.states import State
from tests.faults.formation import WORK, Formation
from tests.faults.handlers import QUEUE

BRIEF = {"do": "sleep", "s": 0.002}


async def most_held(formation: Formation, over: asyncio.Event) -> int:
    """The most leases that there were at any time, looked at as often as can be."""
    leases, most = f"{formation.queue.keys.queue(QUEUE)}leases", 0
    while not over.is_set():
        most = max(most, await formation.queue.redis.zcard(leases))
        await asyncio.sleep(0)
    return most


async def starts(formation: Formation, jobs: list[str]) -> dict[str, float]:
    """When each of the jobs that have started did, by Redis' clock."""
    return {one.id: one.started_at for one in await formation.results.records(jobs) if one.started_at}


async def test_10_high_jobs_go_first_a_worker_holds_no_more_than_its_slots_and_low_ones_get_their_tenth(
    formation: Formation,
) -> None:
    over = asyncio.Event()
    watch = asyncio.create_task(most_held(formation, over))
    low = await formation.submit(1000, priority="low", input=BRIEF)
    formation.start(*WORK, slots=1)
    await formation.started(low[20])
    burst = await formation.submit(50, priority="high", input=BRIEF)
    ended = await formation.ends(burst)
    came, last = min(one.created_at for one in ended), max(one.started_at or 0 for one in ended)
    assert sum(came < at < last for at in (await starts(formation, low)).values()) <= 1
    # Now there is no end of high ones.
    high = await formation.submit(500, priority="high", input=BRIEF)
    await formation.started(high[350])
    begun = await starts(formation, high)
    until_ms = max(begun.values())
    beside = sum(min(begun.values()) <= at <= until_ms for at in (await starts(formation, low)).values())
    assert beside >= 0.1 * (len(begun) + beside)
    over.set()
    assert await watch == 1


async def test_an_owners_bound_holds_and_frees_itself_while_workers_are_killed(formation: Formation) -> None:
    await Policies(formation.queue.redis, formation.settings).set_share("ada", Policy.parse(["in_progress=2"]))
    await formation.scheduler()
    workers = [formation.start(*WORK, slots=4) for _ in range(2)]
    await formation.workers(QUEUE, 2)
    jobs = await formation.submit(30, user="ada", input={"do": "sleep", "s": 0.2})
    beside = await formation.submit(30, user="bob", input={"do": "sleep", "s": 0.2})
    held, over = f"{formation.queue.keys.of_queue(QUEUE)}running:ada", asyncio.Event()
    most = 0

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            running = [record for record in await formation.results.records(jobs) if record.status == State.IN_PROGRESS]
            most = max(most, len(running))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    chance = random.Random(1)
    for _ in range(3):
        await asyncio.sleep(0.6)  # what is measured is a run of some length, with kills in it
        chance.choice(workers).kill()
    records = await formation.ends(jobs + beside)
    over.set()
    await watching
    assert {record.status for record in records} == {State.COMPLETED}
    assert 1 <= most <= 2
    assert await formation.queue.redis.exists(held, held.replace("running:ada", "held")) == 0
