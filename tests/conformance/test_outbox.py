"""A job's end is in the outbox the moment it is stored, whichever move ended it; and the moves of a delivery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from common.egress import Reply
from common.endpoints import Endpoint, Endpoints, Secret
from common.errors import EndpointsFull, NoDelivery, NoEndpoint
from common.outbox import Delivery, Outbox
from common.scripts import execute
from common.webhooks import Hook
from tests.conformance.world import MakeWorld, World

HOOK = Hook("https://example.org/hook", "whsec_" + "A" * 32)
GOOD = Reply(at=1.0, took_ms=5, status=200)
BAD = Reply(at=1.0, took_ms=5, status=500)


async def complete(world: World, job_id: str) -> None:
    await world.complete(await world.claim_one())


async def incomplete(world: World, job_id: str) -> None:
    await world.commit_incomplete(await world.claim_one())


async def fail(world: World, job_id: str) -> None:
    await world.fail(await world.claim_one(), retryable=False)


async def fail_for_the_last_time(world: World, job_id: str) -> None:
    for _ in range(world.settings.max_attempts):
        await world.fail(await world.claim_one(), retryable=True)
        await world.promote(job_id)


async def cancel(world: World, job_id: str) -> None:
    await world.queue.cancel(job_id)


async def cancel_running(world: World, job_id: str) -> None:
    await world.claim_one()
    await world.queue.cancel(job_id)


async def expire(world: World, job_id: str) -> None:
    await world.expire(job_id)


async def expire_before_its_claim(world: World, job_id: str) -> None:
    await world.outlive(job_id)
    assert await world.claim() == []


async def die(world: World, job_id: str) -> None:
    for _ in range(world.settings.max_deaths):
        await world.rescue(await world.claim_one())


End = Callable[[World, str], Awaitable[None]]
ENDS: list[tuple[End, str]] = [
    (complete, "completed"),
    (incomplete, "incomplete"),
    (fail, "failed"),
    (fail_for_the_last_time, "failed"),
    (cancel, "cancelled"),
    (cancel_running, "cancelled"),
    (expire, "expired"),
    (expire_before_its_claim, "expired"),
    (die, "failed"),
]


def outbox_of(world: World) -> Outbox:
    return Outbox(world.redis, world.settings)


def endpoint(user: str = "ann", *kinds: str) -> Callable[[str, float], Endpoint]:
    def made(endpoint_id: str, now: float) -> Endpoint:
        return Endpoint(
            id=endpoint_id,
            user=user,
            url="https://example.org/standing",
            event_types=kinds or ("*",),
            secrets=(Secret("whsec_" + "B" * 32),),
            created_at=now,
            updated_at=now,
        )

    return made


async def due(world: World, count: int = 10) -> list[Delivery]:
    return (await outbox_of(world).due(world.prefix, count)).deliveries


async def make_due(world: World, delivery: Delivery) -> None:
    await world.redis.zadd(f"{world.prefix}outbox", {delivery.name: 1}, xx=True)


@pytest.mark.parametrize(("end", "state"), ENDS, ids=lambda one: getattr(one, "__name__", one))
async def test_every_end_of_a_job_with_a_webhook_is_told(world: World, end: End, state: str) -> None:
    job_id = await world.submit(hook=HOOK, user="ann")
    assert await due(world) == []
    await end(world, job_id)
    assert await world.state(job_id) == state
    (delivery,) = await due(world)
    assert (delivery.type, delivery.job, delivery.subject) == (f"job.{state}", job_id, job_id)
    assert (delivery.hook, delivery.user) == (HOOK, "ann")
    assert delivery.event == f"evt_{job_id.removeprefix('job_')}"
    assert await due(world) == []  # it is leased


@pytest.mark.parametrize(("end", "state"), ENDS, ids=lambda one: getattr(one, "__name__", one))
async def test_every_end_is_told_to_the_endpoints_of_its_user(world: World, end: End, state: str) -> None:
    mine = await Endpoints(world.redis, world.settings).create(endpoint("ann"), "ann")
    await Endpoints(world.redis, world.settings).create(endpoint("bob"), "bob")
    job_id = await world.submit(user="ann")
    await end(world, job_id)
    (delivery,) = await due(world)
    assert (delivery.type, delivery.job, delivery.endpoint) == (f"job.{state}", job_id, mine.id)


async def test_a_job_without_a_webhook_leaves_nothing_in_the_outbox(world: World) -> None:
    await world.submit()
    await world.run_all()
    assert not any("outbox" in key or "deliver" in key for key in await world.keys())


async def test_only_the_events_that_were_asked_for_are_told(world: World) -> None:
    hook = msgspec.structs.replace(HOOK, events=("job.failed",))
    await Endpoints(world.redis, world.settings).create(endpoint("ann", "job.failed", "job.cancelled"), "ann")
    await world.submit(user="ann", hook=hook)
    await world.run_all()
    assert await due(world) == []
    job_id = await world.submit(user="ann", hook=hook)
    await fail(world, job_id)
    assert {one.endpoint is None for one in await due(world)} == {True, False}


async def test_what_a_job_stands_for_is_told_instead_of_it(world: World) -> None:
    await Endpoints(world.redis, world.settings).create(endpoint("ann", "response.failed"), "ann")
    job_id = await world.submit(user="ann", hook=Hook(subject="response"))
    await world.expire(job_id)
    (delivery,) = await due(world)
    assert (delivery.type, delivery.subject, delivery.job) == ("response.failed", f"resp_{job_id[4:]}", job_id)


async def test_a_job_run_again_tells_its_end_too(world: World) -> None:
    job_id = await world.submit(hook=HOOK)
    await world.queue.cancel(job_id)
    again = (await world.queue.retry(job_id)).id
    await world.run_all()
    assert {one.job for one in await due(world)} == {job_id, again}


async def test_a_commit_sent_again_tells_nothing_twice(world: World) -> None:
    await world.submit(hook=HOOK)
    job = await world.claim_one()
    await world.complete(job)
    (delivery,) = await due(world)
    await outbox_of(world).settle(delivery, "delivered", GOOD)
    assert await world.complete(job) == ["mine"]
    assert await due(world) == []


async def test_a_stale_worker_tells_nothing(world: World) -> None:
    await world.submit(hook=HOOK)
    stale = await world.claim_one()
    await world.rescue(stale)
    assert await world.complete(stale) == ["lost"]
    assert await due(world) == []


# -- deliveries


async def made(world: World, **fields: Any) -> Delivery:
    await world.submit(**({"hook": HOOK} | fields))
    await world.run_all()
    (delivery,) = await due(world)
    return delivery


async def test_a_delivery_whose_worker_died_comes_back_when_its_lease_ends(world: World) -> None:
    delivery = await made(world)
    score = await world.redis.zscore(f"{world.prefix}outbox", delivery.name)
    assert score is not None
    lease_s = world.settings.webhook_timeout_s + world.settings.lease_s
    assert lease_s - 5 < score / 1000 - time.time() < lease_s + 1
    await make_due(world, delivery)
    (again,) = await due(world)
    assert (again.id, again.event) == (delivery.id, delivery.event)


async def test_a_worker_whose_lease_has_ended_settles_nothing(world: World) -> None:
    slow = await made(world)
    await make_due(world, slow)
    (quick,) = await due(world)
    outbox = outbox_of(world)
    assert not await outbox.settle(slow, "failed", BAD)
    assert (await outbox.get(slow.id)).status == "pending"
    assert await outbox.settle(quick, "delivered", GOOD)
    assert not await outbox.settle(slow, "pending", BAD)
    assert (await outbox.get(slow.id)).status == "delivered"


async def test_an_attempt_that_is_written_down_again_after_a_lost_reply_counts_once(world: World) -> None:
    delivery = await made(world)
    outbox = outbox_of(world)
    for answer in (True, False):
        assert await outbox.settle(delivery, "pending", BAD, 100) == answer
    assert await outbox.attempts(delivery.id) == [BAD]
    await make_due(world, delivery)
    (again,) = await due(world)
    for answer in (True, False):
        assert await outbox.settle(again, "delivered", GOOD) == answer
    assert (await outbox.standing()).counts == {"attempt:500": 1, "attempt:good": 1, "delivered": 1}


async def test_after_a_failed_attempt_a_delivery_is_due_when_it_was_said(world: World) -> None:
    delivery = await made(world)
    outbox = outbox_of(world)
    await outbox.settle(delivery, "pending", BAD, 100, b"the body")
    found = await outbox.get(delivery.id)
    assert found.due_ms is not None
    assert 95 < found.due_ms / 1000 - time.time() < 105
    assert (found.tries, found.attempts, found.body) == (1, 1, b"the body")
    assert await outbox.attempts(delivery.id) == [BAD]


async def test_what_is_over_goes_after_its_retention_and_what_waits_does_not(make_world: MakeWorld) -> None:
    world = make_world(webhook_retention_s=100)
    delivery = await made(world)
    key = f"{world.prefix}delivery:{delivery.name}"
    assert await world.ttl_ms(key) == -1
    await outbox_of(world).settle(delivery, "delivered", GOOD)
    assert 0 < await world.ttl_ms(key) <= 100_000
    assert 0 < await world.ttl_ms(f"{world.prefix}attempts:{delivery.name}") <= 100_000
    assert await outbox_of(world).forget(world.prefix) == 0
    await world.redis.delete(key)
    assert await outbox_of(world).forget(world.prefix) == 1
    assert not (await outbox_of(world).page()).deliveries


async def test_the_list_is_bounded_and_what_still_waits_stays(make_world: MakeWorld) -> None:
    world = make_world(webhook_kept=3)
    for _ in range(6):
        await world.submit(hook=HOOK)
    await world.run_all()
    outbox = outbox_of(world)
    taken = await due(world)
    for delivery in taken[:4]:
        await outbox.settle(delivery, "delivered", GOOD)
    assert await outbox.forget(world.prefix, 2) == 3
    left = {one.id: one.status for one in (await outbox.page()).deliveries}
    assert {one.id for one in taken[4:]} < set(left)
    assert len(left) == 3


async def test_a_delivery_is_sent_again_on_request_with_its_old_id(world: World) -> None:
    delivery = await made(world)
    outbox = outbox_of(world)
    await outbox.settle(delivery, "failed", BAD)
    await outbox.redeliver(delivery.id)
    (again,) = await due(world)
    assert (again.id, again.event, again.tries, again.attempts) == (delivery.id, delivery.event, 0, 1)
    assert await world.ttl_ms(f"{world.prefix}delivery:{delivery.name}") == -1


async def test_an_attempt_under_way_does_not_settle_what_was_sent_again_meanwhile(world: World) -> None:
    delivery = await made(world)
    await outbox_of(world).redeliver(delivery.id)
    assert not await outbox_of(world).settle(delivery, "failed", BAD)
    assert len(await due(world)) == 1


async def test_a_list_is_read_page_by_page_newest_first(world: World) -> None:
    jobs = await world.submit_many(7, hook=HOOK, user="ann")
    await world.run_all(1)
    outbox = outbox_of(world)
    seen: list[str | None] = []
    after = None
    while True:
        page = await outbox.page(after=after, limit=3)
        seen += [one.job for one in page.deliveries]
        if page.next is None:
            break
        after = page.next
    assert len(seen) == 7
    assert set(seen) == set(jobs)
    (one,) = (await outbox.page(job=jobs[3])).deliveries
    assert one.job == jobs[3]
    assert not (await outbox.page(user="bob")).deliveries
    assert not (await outbox.page(status="failed")).deliveries
    assert len((await outbox.page(status="pending")).deliveries) == 7


async def test_a_delivery_that_cannot_be_read_is_laid_aside_and_the_others_go_on(world: World) -> None:
    good = await made(world)
    await make_due(world, good)
    for name, fields in {"00bad": {"event": "evt_1"}, "00worse": {"event": "x", "hook": "\x80\x04."}}.items():
        await execute(world.redis, "HSET", f"{world.prefix}delivery:{name}", *[x for f in fields.items() for x in f])
        await world.redis.zadd(f"{world.prefix}outbox", {name: 1})
    await world.redis.zadd(f"{world.prefix}outbox", {"00gone": 1})
    assert [one.id for one in await due(world)] == [good.id]
    assert await world.redis.zrange(f"{world.prefix}outbox", 0, -1) == [good.name.encode()]


async def test_an_unknown_delivery_is_not_found(world: World) -> None:
    for name in ("dlv_00nothing", "dlv_zz", "nonsense", "dlv_ff12", "dlv_", "dlv_00" + "x" * 100):
        with pytest.raises(NoDelivery):
            await outbox_of(world).get(name)
        with pytest.raises(NoDelivery):
            await outbox_of(world).redeliver(name)


async def test_the_numbers_for_metrics_add_up(world: World) -> None:
    delivery = await made(world)
    outbox = outbox_of(world)
    await outbox.settle(delivery, "pending", BAD, 0)
    (again,) = await due(world)
    await outbox.settle(again, "delivered", GOOD)
    standing = await outbox.standing()
    assert (standing.pending, standing.counts) == (0, {"attempt:500": 1, "attempt:good": 1, "delivered": 1})


# -- endpoints


async def test_a_deleted_or_disabled_endpoint_is_told_nothing_more(world: World) -> None:
    endpoints = Endpoints(world.redis, world.settings)
    one = await endpoints.create(endpoint("ann"), "ann")
    await endpoints.change(one.id, lambda it: msgspec.structs.replace(it, disabled="by request"))
    await world.submit(user="ann")
    await world.run_all()
    assert await due(world) == []
    await endpoints.change(one.id, lambda it: msgspec.structs.replace(it, disabled=None))
    await world.submit(user="ann")
    await world.run_all()
    assert len(await due(world)) == 1
    await endpoints.delete(one.id)
    await world.submit(user="ann")
    await world.run_all()
    assert await due(world) == []
    with pytest.raises(NoEndpoint):
        await endpoints.get(one.id)
    assert not any(key.startswith(("owners", "hooks", "endpoint")) for key in await world.keys())


async def test_two_changes_at_once_undo_nothing(world: World) -> None:
    endpoints = Endpoints(world.redis, world.settings)
    one = await endpoints.create(endpoint("ann"), "ann")
    names = [f"n{i}" for i in range(5)]

    def named(it: Endpoint, name: str) -> Endpoint:
        return msgspec.structs.replace(it, name=f"{it.name},{name}")

    await asyncio.gather(*(endpoints.change(one.id, partial(named, name=name)) for name in names))
    changed = await endpoints.get(one.id)
    assert sorted(changed.name.strip(",").split(",")) == names
    assert changed.version == 6


async def test_a_user_has_a_bounded_number_of_endpoints(world: World) -> None:
    endpoints = Endpoints(world.redis, world.settings)
    answers = await asyncio.gather(
        *(endpoints.create(endpoint("ann"), "ann") for _ in range(30)), return_exceptions=True
    )
    assert sum(isinstance(answer, Endpoint) for answer in answers) == 20
    assert sum(isinstance(answer, EndpointsFull) for answer in answers) == 10
    assert len(await endpoints.all("ann")) == 20
    assert await endpoints.all("bob") == []


async def test_what_a_death_left_half_done_about_endpoints_is_mended(make_world: MakeWorld) -> None:
    world = make_world(shards=3)
    endpoints = Endpoints(world.redis, world.settings)
    kept = await endpoints.create(endpoint("ann"), "ann")
    gone = await endpoints.create(endpoint("ann"), "ann")
    for prefix in world.queue.keys.prefixes():
        await world.redis.delete(f"{prefix}owners")
        await execute(world.redis, "SADD", f"{prefix}owners", "ann", "nobody")
        await execute(world.redis, "HDEL", f"{prefix}hooks:ann", kept.id)
    home = world.queue.keys.prefix(world.queue.keys.shard_of_queue("ann"))
    await world.redis.delete(f"{home}endpoint:{gone.id}")
    await endpoints.repair()
    for prefix in world.queue.keys.prefixes():
        assert await execute(world.redis, "HKEYS", f"{prefix}hooks:ann") == [kept.id.encode()]
        assert await execute(world.redis, "SMEMBERS", f"{prefix}owners") in ({b"ann"}, [b"ann"])
