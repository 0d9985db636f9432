"""What a delivery worker does: attempts in time, whatever the receiver answers, and nothing lost."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from common.egress import Egress, Reply
from common.endpoints import Endpoint, Endpoints, Secret
from common.outbox import Delivery, Outbox, Status
from common.settings import Settings
from common.webhooks import Hook, new_secret
from tests.conformance.world import World, eventually
from tests.delivery.conftest import Deliver
from tests.receiver import Receiver, never, status
from workers.delivery import pause_before_next

SECRET = new_secret()


async def end(world: World, receiver: Receiver, **fields: Any) -> str:
    """Run a job with a webhook to its end."""
    hook = Hook(receiver.url, SECRET, **fields)
    job_id = await world.submit(hook=hook)
    await world.run_all()
    return job_id


async def settled(world: World, job_id: str, *wanted: Status, endpoint: bool = False) -> Delivery:
    """The job's delivery, once it stands as it should."""
    outbox = Outbox(world.redis, world.settings)

    async def look() -> Delivery | None:
        found = (await outbox.page(job=job_id)).deliveries
        return next((one for one in found if one.status in wanted), None)

    found: Delivery = await eventually(look, what=f"{job_id} is {wanted}")
    return found


async def standing_endpoint(world: World, receiver: Receiver, *secrets: Secret) -> Endpoint:
    """An endpoint of everything that `ann` does."""

    def made(endpoint_id: str, now: float) -> Endpoint:
        some = secrets or (Secret(SECRET),)
        return Endpoint(id=endpoint_id, user="ann", url=receiver.url, secrets=some, created_at=now, updated_at=now)

    return await Endpoints(world.redis, world.settings).create(made, "ann")


async def test_an_end_is_told_at_once_thin_and_signed(world: World, receiver: Receiver, deliver: Deliver) -> None:
    await deliver()
    began = time.monotonic()
    job_id = await end(world, receiver)
    (got,) = await receiver.get(1)
    assert time.monotonic() - began < 1
    event = Webhook(SECRET).verify(got.body, got.headers)
    assert event["type"] == "job.completed"
    assert event["data"] == {"id": job_id, "object": "job", "status": "completed"}
    assert got.headers["webhook-id"] == event["id"]
    assert got.line == "POST /hook HTTP/1.1"
    assert (await settled(world, job_id, "delivered")).attempts == 1


async def test_a_full_payload_has_the_record_and_the_result(world: World, receiver: Receiver, deliver: Deliver) -> None:
    await deliver()
    job_id = await end(world, receiver, payload="full")
    (got,) = await receiver.get(1)
    data = Webhook(SECRET).verify(got.body, got.headers)["data"]
    assert (data["id"], data["status"], data["kind"]) == (job_id, "completed", "generation")
    assert data["result"]["output"] == {"text": "an answer"}


async def test_a_full_payload_that_would_be_too_large_is_thin(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    await deliver()
    await world.submit(hook=Hook(receiver.url, SECRET, payload="full"))
    await world.complete(await world.claim_one(), text="a" * 30_000)
    (got,) = await receiver.get(1)
    assert set(got.event["data"]) == {"id", "object", "status"}


async def test_what_is_sent_again_is_what_was_sent_though_the_job_is_gone(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    receiver.will(status(500), status(200))
    await world.submit(hook=Hook(receiver.url, SECRET, payload="full"))
    await world.complete(await world.claim_one(), text="a" * 5_000)  # larger than what Redis keeps: a blob
    await deliver()
    await receiver.get(1)
    for key in await world.redis.keys("*job:*"):
        await world.redis.delete(key)
    first, second = await receiver.get(2)
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_a_receiver_that_fails_is_asked_again_on_schedule_and_then_given_up_loudly(
    world: World, receiver: Receiver, deliver: Deliver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.will(status(500), status(302, "location: http://127.0.0.1:1/"), status(503))
    await deliver()
    job_id = await end(world, receiver)
    found = await settled(world, job_id, "failed")
    first, second, third = receiver.received
    assert 0.18 <= second.at - first.at <= 0.7
    assert 0.36 <= third.at - second.at <= 0.9
    assert {one.headers["webhook-id"] for one in receiver.received} == {found.event}
    for one in receiver.received:
        Webhook(SECRET).verify(one.body, one.headers)
    log = await Outbox(world.redis, world.settings).attempts(found.id)
    assert [one.status for one in log] == [500, 302, 503]
    (loud,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert found.id in loud.getMessage()
    assert "3 attempts" in loud.getMessage()


async def test_a_redirect_is_not_followed(world: World, receiver: Receiver, deliver: Deliver) -> None:
    other = Receiver()
    await other.start()
    receiver.will(status(307, f"location: {other.url}"), status(200))
    await deliver()
    await end(world, receiver)
    await receiver.get(2)
    assert other.connections == 0
    await other.stop()


async def test_a_receiver_that_is_gone_is_not_asked_again_and_its_endpoint_is_disabled(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    receiver.will(status(410))
    one = await standing_endpoint(world, receiver)
    await deliver()
    first = await world.submit(user="ann")
    await world.run_all()
    assert (await settled(world, first, "failed")).attempts == 1
    disabled = await Endpoints(world.redis, world.settings).get(one.id)
    assert disabled.disabled
    assert "410" in disabled.disabled
    second = await world.submit(user="ann")
    await world.run_all()
    assert not (await Outbox(world.redis, world.settings).page(job=second)).deliveries
    assert len(receiver.received) == 1


async def test_what_waits_for_a_deleted_endpoint_is_dropped(world: World, receiver: Receiver, deliver: Deliver) -> None:
    one = await standing_endpoint(world, receiver)
    job_id = await world.submit(user="ann")
    await world.run_all()
    await Endpoints(world.redis, world.settings).delete(one.id)
    await deliver()
    found = await settled(world, job_id, "failed")
    (attempt,) = await Outbox(world.redis, world.settings).attempts(found.id)
    assert attempt.error == "its endpoint was deleted"
    assert receiver.connections == 0


async def test_a_deliverys_signatures_are_those_of_the_moment_of_its_attempt(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    old, new = new_secret(), new_secret()
    one = await standing_endpoint(world, receiver, Secret(old))
    await world.submit(user="ann")
    await world.run_all()
    await Endpoints(world.redis, world.settings).change(one.id, lambda it: it.rotated(new, 3600, time.time()))
    await deliver()
    (got,) = await receiver.get(1)
    for secret in (old, new):
        Webhook(secret).verify(got.body, got.headers)
    assert len(got.headers["webhook-signature"].split()) == 2


async def test_one_receiver_that_hangs_does_not_hold_up_the_others(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    hanging = Receiver([never])
    await hanging.start()
    for _ in range(30):
        await world.submit(hook=Hook(hanging.url))
    await world.submit(hook=Hook(receiver.url))
    await world.run_all()
    await deliver(webhook_slots=8)
    began = time.monotonic()
    await receiver.get(1)
    assert time.monotonic() - began < 1.5  # an attempt at the other takes 1 s, and there are 30
    assert hanging.connections <= 4
    await hanging.stop()


async def test_a_worker_stops_in_order_after_the_attempts_under_way(
    world: World, receiver: Receiver, deliver: Deliver
) -> None:
    going = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        await going.wait()
        writer.write(status(200))

    receiver.will(slowly)
    job_id = await end(world, receiver)
    deliverer = await deliver()
    await receiver.get(1)
    tasks = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Deliverer.run"]
    for task in tasks:
        task.cancel()
    going.set()
    await asyncio.wait(tasks)
    assert not deliverer._under_way
    assert (await settled(world, job_id, "delivered")).attempts == 1


async def test_a_secret_is_in_no_line_of_the_log(
    world: World, receiver: Receiver, deliver: Deliver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jarvis")
    receiver.will(status(500))
    await deliver(webhook_retry_s=(0.1,))
    job_id = await world.submit(hook=Hook(f"{receiver.url}?token=hidden", SECRET))
    await world.run_all()
    await settled(world, job_id, "failed")
    own = [one.getMessage() for one in caplog.records if one.name.startswith("jarvis")]
    assert own
    assert not any(SECRET in line or "hidden" in line for line in own)


@pytest.mark.parametrize("tries", range(9))
def test_the_schedule_is_that_of_standard_webhooks_within_a_tenth(tries: int) -> None:
    settings = Settings()
    usual = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)[tries]
    bad = Reply(at=0, took_ms=1, status=500)
    pauses = [pause_before_next(settings, tries, bad) or 0 for _ in range(200)]
    assert usual * 0.9 <= min(pauses) < max(pauses) <= usual * 1.1
    assert pause_before_next(settings, 9, bad) is None


def test_a_receiver_that_asks_for_more_time_gets_it_and_one_that_asks_for_less_does_not() -> None:
    settings = Settings()
    assert pause_before_next(settings, 0, Reply(at=0, took_ms=1, status=429, retry_after_s=777)) == 777
    soon = pause_before_next(settings, 2, Reply(at=0, took_ms=1, status=429, retry_after_s=1))
    assert soon is not None
    assert soon >= 1620


async def test_retry_after_is_obeyed(world: World, receiver: Receiver, deliver: Deliver) -> None:
    receiver.will(status(429, "retry-after: 1"), status(200))
    await deliver()
    await end(world, receiver)
    first, second = await receiver.get(2)
    assert second.at - first.at >= 0.95


async def test_an_attempt_is_checked_anew_each_time(world: World, receiver: Receiver, deliver: Deliver) -> None:
    """The name led to a good address when the job came, and to a bad one later (rebinding)."""
    from common.destinations import Destinations, address_of

    answers = [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.2"]]

    async def resolve(host: str, port: int) -> list[Any]:
        return [address_of(one) for one in (answers.pop(0) if len(answers) > 1 else answers[0])]

    receiver.will(status(500))
    await deliver(Egress(Destinations("127.0.0.1"), 1, resolve))
    hook = Hook(f"http://rebinding.example:{receiver.port}/", SECRET)
    job_id = await world.submit(hook=hook)
    await world.run_all()
    found = await settled(world, job_id, "failed")
    log = await Outbox(world.redis, world.settings).attempts(found.id)
    assert [one.status for one in log] == [500, None, None]
    assert all(one.error and "127.0.0.2 is not a public address" in one.error for one in log[1:])
    assert receiver.connections == 1
    assert msgspec.structs.astuple(log[1])[4] is None  # no address was connected to
