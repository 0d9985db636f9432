"""A worker that computes is alive, one that is stopped is not, and a beat lives exactly as long as its worker.

Acceptance tests 2 and 3.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from common.states import State
from tests.faults.conftest import FULL
from tests.faults.formation import BOUND_S, LEASE_S, WORK, Formation, Kept
from tests.waiting import until


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def one_worker(formation: Formation, **variables: Any) -> Kept:
    worker = formation.start(*WORK, **variables)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    return worker


async def test_2_a_long_job_and_one_that_holds_the_gil_run_once(formation: Formation) -> None:
    await one_worker(formation)
    long, short = (10, 3) if FULL else (4, 3)
    [healthy] = await formation.submit(input={"s": long * LEASE_S})
    await formation.started(healthy)
    [blocking] = await formation.submit(input={"do": "compute", "s": short * LEASE_S})
    records = await formation.ends([healthy, blocking])
    assert [record.status for record in records] == [State.COMPLETED] * 2
    for record in records:
        assert (record.claims, len(formation.ledger.starts(record.id))) == (1, 1)
    stored = await formation.results.result(blocking)
    assert stored is not None
    assert stored.record.run_ms is not None
    assert stored.record.run_ms >= short * LEASE_S * 1000, "it held the GIL for longer than a lease"


async def test_3_a_stopped_worker_loses_its_job_and_can_change_nothing(formation: Formation) -> None:
    stopped, other = formation.start(*WORK, slots=1), formation.start(*WORK, slots=1)
    await formation.scheduler()
    await formation.workers("work:test", 2)
    pids = {stopped.pid, other.pid}
    for _ in range(100 if FULL else 1):
        [job] = await formation.submit(input={"do": "tokens", "n": 40, "s": 0.1})
        await formation.started(job)
        victim = stopped if formation.ledger.starts(job)[0].pid == stopped.pid else other
        victim.send(signal.SIGSTOP)
        assert await formation.started(job, times=2, deadline_s=BOUND_S + LEASE_S) <= BOUND_S
        [record] = await formation.ends([job])
        victim.send(signal.SIGCONT)
        first, second = formation.ledger.starts(job)
        assert {first.pid, second.pid} == pids
        assert (record.status, record.claims, record.attempts) == (State.COMPLETED, 2, 0)
        events = await formation.results.events(job)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        shown = "".join(event.data["text"] for event in events if event.event == "token")
        assert shown == "".join(f"t{n} " for n in range(40)), "no token of the stale run, none twice"
        # The stale run stops, and its worker takes new jobs.
        [a, b] = await formation.submit(2, input={"s": 0.5})
        await formation.ends([a, b])
    assert {line.pid for line in formation.ledger.starts()[-2:]} <= pids
    assert stopped.exits == other.exits == []


async def test_3_a_stopped_worker_that_goes_on_stops_its_work_within_a_second(formation: Formation) -> None:
    worker = await one_worker(formation, slots=1)
    [job] = await formation.submit(input={"s": 30})
    await formation.started(job)
    worker.send(signal.SIGSTOP)

    async def taken_back() -> bool:
        return (await formation.results.record(job)).status == State.QUEUED

    assert await until(taken_back, "the job is queued again", step_s=0.02) <= BOUND_S
    await formation.queue.cancel(job)
    worker.send(signal.SIGCONT)
    took = await until(lambda: bool(formation.ledger.lines("stopped", job)), "the work is stopped")
    assert took <= 1 + LEASE_S / 4
    [again] = await formation.submit()
    await formation.ends([again])


async def test_a_run_longer_than_its_timeout_is_not_kept_alive(formation: Formation) -> None:
    """The worker cannot end it, since the job holds the GIL; the beat does not renew it, so that it is rescued."""
    await one_worker(formation, slots=1)
    [job] = await formation.submit(input={"do": "compute", "s": 4 * LEASE_S}, timeout_s=1)
    await formation.started(job)

    async def taken_back() -> bool:
        return (await formation.results.record(job)).status != State.IN_PROGRESS

    assert await until(taken_back, "its lease has ended", step_s=0.02) <= 1 + BOUND_S


async def test_a_beat_dies_with_its_worker_and_is_started_again_without(formation: Formation) -> None:
    worker = await one_worker(formation, slots=1, lease_s=20)  # a start of Python may take longer than 2 s
    [job] = await formation.submit(input={"s": 60})
    await formation.started(job)
    [beat] = children(worker.pid)
    assert os.getpgid(beat) != os.getpgid(worker.pid), "a signal to the worker's group does not reach it"

    async def lease_end() -> float:
        key = f"{formation.queue.keys.queue('work:test')}leases"
        [(_, end)] = await formation.queue.redis.zrange(key, 0, -1, withscores=True)
        return float(end)

    os.kill(beat, signal.SIGKILL)
    await until(lambda: gone(beat), "the beat is gone")
    before = await lease_end()

    async def renewed() -> bool:
        return await lease_end() > before

    await until(renewed, "another beat renews the lease", deadline_s=20)
    [beat] = children(worker.pid)
    worker.again = False
    worker.kill()
    await until(lambda: gone(beat), "the beat is gone", deadline_s=5)


async def test_a_worker_that_ends_in_order_leaves_no_beat(formation: Formation) -> None:
    worker = await one_worker(formation)
    [beat] = children(worker.pid)
    assert await worker.end(signal.SIGINT) == 0
    assert gone(beat)
    assert await formation.results.workers("work:test") == []
    await asyncio.sleep(0)
