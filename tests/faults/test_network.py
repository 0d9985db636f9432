"""A worker cut off from Redis: silence, half-open connections, latency. Acceptance test 8."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from common.settings import Settings
from common.states import State
from tests.faults.conftest import FULL
from tests.faults.formation import BOUND_S, LEASE_S, WORK, Formation
from tests.faults.proxy import Proxy
from tests.waiting import until


async def cut_off(formation: Formation, proxy: Proxy) -> str:
    """A job that runs on the worker behind the proxy while another worker is idle; returns its id."""
    formation.start(*WORK, slots=1, redis_url=proxy.url, name="cut")
    await formation.scheduler()
    await formation.workers("work:test", 1)
    [job] = await formation.submit(input={"do": "tokens", "n": 60, "s": 0.1})
    await formation.started(job)
    formation.start(*WORK, slots=1, name="other")
    await formation.workers("work:test", 2)
    return job


@pytest.mark.parametrize("how", ["silent", "half_open"])
async def test_8_a_cut_worker_loses_its_job_and_changes_nothing_after_the_cut(
    formation: Formation, proxy: Proxy, how: str
) -> None:
    job = await cut_off(formation, proxy)
    setattr(proxy, how, True)
    took = await formation.started(job, times=2, deadline_s=BOUND_S + 3)
    # In a half-open connection a last renewal may still get through, a beat after the cut.
    assert took <= BOUND_S + (LEASE_S / 4 if how == "half_open" else 0)
    await asyncio.sleep(10 if FULL else 1)
    setattr(proxy, how, False)
    [record] = await formation.ends([job])
    assert (record.status, record.claims) == (State.COMPLETED, 2)
    events = await formation.results.events(job)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    shown = "".join(event.data["text"] for event in events if event.event == "token")
    assert shown == "".join(f"t{n} " for n in range(60))
    # Healed, the worker takes jobs again: no call of it was blocked longer than its timeout.
    held = formation.folder / "held"
    held.touch()
    jobs = await formation.submit(2, input={"do": "hold", "file": str(held)})
    took = await until(lambda: len({start.job for start in formation.ledger.starts()} & set(jobs)) == 2, "both work")
    assert took <= formation.settings.redis_timeout_s + 2
    held.unlink()
    await formation.ends(jobs)
    assert [kept.exits for kept in formation.kept] == [[], [], []]


async def test_8_a_cut_worker_stops_its_work_at_the_end_of_the_lease(formation: Formation, proxy: Proxy) -> None:
    formation.start(*WORK, slots=1, redis_url=proxy.url)
    await formation.workers("work:test", 1)
    [job] = await formation.submit(input={"s": 60})
    await formation.started(job)
    proxy.silent = True
    took = await until(lambda: bool(formation.ledger.lines("stopped", job)), "the work is stopped")
    assert took <= LEASE_S + 1
    proxy.silent = False
    await formation.queue.cancel(job)


async def test_8_half_a_second_of_latency_costs_no_job(formation: Formation, proxy: Proxy) -> None:
    proxy.delay_s = 0.5
    formation.start(*WORK, slots=2, redis_url=proxy.url)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    jobs = await formation.submit(2, input={"s": 2 * LEASE_S})
    records = await formation.ends(jobs)
    assert {(record.status, record.claims) for record in records} == {(State.COMPLETED, 1)}
    assert len(formation.ledger.starts()) == 2


async def test_8_connections_cut_again_and_again_cost_no_job(formation: Formation, proxy: Proxy) -> None:
    formation.start(*WORK, slots=4, redis_url=proxy.url)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    jobs = await formation.submit(60, input={"s": 0.2})
    for _ in range(10):
        await asyncio.sleep(0.25)
        proxy.cut()
    records = await formation.ends(jobs)
    assert {(record.status, record.claims) for record in records} == {(State.COMPLETED, 1)}
    assert len(formation.ledger.starts()) == 60


def test_8_a_blocking_read_must_end_before_a_call_counts_as_hanging() -> None:
    with pytest.raises(ValidationError, match="bell_timeout_s"):
        Settings(bell_timeout_s=5, redis_timeout_s=5)
