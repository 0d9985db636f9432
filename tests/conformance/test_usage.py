"""Usage: each job counts once, on the day and for the key, owner and model that it belongs to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from common.errors import InvalidField
from common.jobs import JobResult
from common.queue import Outcome
from common.usage import Group, UsageSums, Used, total
from tests.conformance.world import MakeWorld, World

DAY: Group = "day"
COST = {"cost_micros": 1250, "cost_currency": "EUR"}


async def used(world: World, *groups: Group, **which: Any) -> list[Used]:
    """Today's sums (and yesterday's, should the day end while the test runs)."""
    today = datetime.now(UTC).date()
    sums = UsageSums(world.redis, world.settings)
    return await sums.used(today - timedelta(1), today + timedelta(1), groups, **which)


async def ended(world: World, gpu_ms: int = 0, **usage: Any) -> None:
    """Claim the next job and commit it with this usage."""
    job = await world.claim_one()
    outcome = Outcome.done(job, job.seq, JobResult({"text": "x"}, usage))
    assert await world.commit(msgspec.structs.replace(outcome, gpu_ms=gpu_ms)) == ["stored"]


async def test_what_a_job_used_counts_for_its_key_owner_and_model(world: World) -> None:
    await world.submit(api_key="k1", user="ada")
    await ended(world, gpu_ms=40, prompt_tokens=20, completion_tokens=30, **COST)
    await world.submit(api_key="k1", user="ada", model="terse", base="demo")
    await ended(world, gpu_ms=2, prompt_tokens=5, audio_seconds=7)
    await world.submit(user="bob")
    await ended(world)

    rows = await used(world, "model", "api_key", "owner")
    assert [(row.owner, row.api_key, row.model) for row in rows] == [
        ("ada", "k1", "demo"),
        ("ada", "k1", "terse"),
        ("bob", "", "demo"),
    ]
    assert rows[0].sums == {
        "completed": 1,
        "prompt_tokens": 20,
        "completion_tokens": 30,
        "gpu_ms": 40,
        "cost:EUR": 1250,
    }
    assert rows[0].cost_micros == {"EUR": 1250}
    assert rows[1].sums == {"completed": 1, "prompt_tokens": 5, "audio_seconds": 7, "gpu_ms": 2}
    assert [row.sums for row in await used(world, "model", owner="bob")] == [{"completed": 1}]
    assert [row.sums for row in await used(world, api_key="")] == [{"completed": 1}]
    assert [row.jobs["completed"] for row in await used(world, api_key="k1")] == [2]
    assert total(rows).sums["prompt_tokens"] == 25


async def test_each_way_to_end_is_counted_once(world: World) -> None:
    await world.submit()
    await ended(world)
    await world.submit()
    await world.commit_incomplete(await world.claim_one())
    await world.submit()
    await world.fail(await world.claim_one(), retryable=False)
    cancelled, expired = await world.submit(), await world.submit(delay_s=60)
    for _ in range(2):
        await world.queue.cancel(cancelled)
        await world.expire(expired)
    (row,) = await used(world)
    assert row.jobs == {"completed": 1, "incomplete": 1, "failed": 1, "cancelled": 1, "expired": 1}


async def test_all_runs_of_a_job_count_as_gpu_time_and_one_of_them_as_a_job(world: World) -> None:
    await world.submit()
    job = await world.claim_one()
    retried = msgspec.structs.replace(Outcome(job, "retry", job.seq, b"{}"), gpu_ms=10)
    assert [await world.commit(retried) for _ in range(2)] == [["stored"], ["mine"]]
    await world.promote(job.id)
    await ended(world, gpu_ms=5, completion_tokens=1)
    (row,) = await used(world)
    assert row.sums == {"completed": 1, "gpu_ms": 15, "completion_tokens": 1}
    assert (await world.results.record(job.id)).gpu_ms == 15


async def test_a_poisoned_job_counts_as_failed(make_world: MakeWorld) -> None:
    world = make_world(max_deaths=1)
    await world.submit()
    await world.rescue(await world.claim_one())
    assert [row.sums for row in await used(world)] == [{"failed": 1}]


async def test_whoever_callers_say_they_are_a_day_has_only_so_many_sums(world: World) -> None:
    await world.submit(user="ada")
    await ended(world)
    (day,) = [name for name in await world.keys() if name.startswith("usage:")]
    many = {f"completed - demo user{n}": "1" for n in range(5000)}
    await world.redis.hset(f"{world.prefix}{day}", mapping=many)  # type: ignore[misc]
    for user, key in (("ada", ""), ("bob", ""), ("eve", ""), ("eve", "k1")):
        await world.submit(user=user, api_key=key)
        await ended(world, prompt_tokens=2)
    told = {(row.owner, row.api_key): row.sums for row in await used(world, "owner", "api_key")}
    assert told["ada", ""] == {"completed": 2}
    assert told["*", ""] == {"completed": 2, "prompt_tokens": 6}
    assert told["eve", "k1"] == {"completed": 1, "prompt_tokens": 2}
    assert ("bob", "") not in told


async def test_sums_go_after_so_many_days(make_world: MakeWorld) -> None:
    world = make_world(usage_kept_days=3)
    await world.submit()
    await ended(world)
    (day,) = [name for name in await world.keys() if name.startswith("usage:")]
    assert 2.9 * 86_400_000 < await world.ttl_ms(world.prefix + day) <= 3 * 86_400_000


async def test_days_are_told_apart_and_those_outside_are_left_out(world: World) -> None:
    today = datetime.now(UTC).date()
    days = [(today - timedelta(n)) for n in (0, 1, 40)]
    for n, day in enumerate(days, 1):
        number = (day - datetime.fromtimestamp(0, UTC).date()).days
        await world.redis.hset(f"{world.prefix}usage:{number}", "completed - demo ada", str(n))  # type: ignore[misc]
    sums = UsageSums(world.redis, world.settings)
    rows = await sums.used(days[1], days[0], [DAY])
    assert [(row.day, row.sums) for row in rows] == [(days[1], {"completed": 2}), (days[0], {"completed": 1})]
    assert [row.sums for row in await sums.used(days[2], days[0], ())] == [{"completed": 6}]


async def test_more_sums_than_an_answer_may_have_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.usage.MOST_ROWS", 2)
    for user in ("a", "b", "c"):
        await world.submit(user=user)
        await ended(world)
    assert len(await used(world, "model")) == 1
    with pytest.raises(InvalidField, match="group_by"):
        await used(world, "owner")
