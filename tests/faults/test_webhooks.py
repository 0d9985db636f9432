"""Delivery workers and workers are killed, Redis goes and comes back: every end is told, each with one id."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from common.outbox import Outbox
from common.states import TERMINAL
from common.webhooks import Hook, new_secret
from tests.faults.formation import WORK, Formation
from tests.receiver import Receiver, never, status
from tests.redis_server import RedisServer
from tests.waiting import until

DELIVERY = ("workers", "delivery")
SECRET = new_secret()


@pytest.fixture
async def formation(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Formation]:
    """Loopback is exempt, an attempt may take a second, and there are many of them."""
    formation = Formation(
        own_redis, tmp_path, webhook_allow="127.0.0.1", webhook_timeout_s=1, webhook_retry_s=(0.2,) * 60, slots=8
    )
    await formation.open()
    yield formation
    if not own_redis.running:
        own_redis.start()
    await formation.close()


def heard(receiver: Receiver) -> dict[str, set[str]]:
    """Ids of the events that the receiver got of each job, all of them signed."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for one in receiver.received:
        event = Webhook(SECRET).verify(one.body, one.headers)
        ids[event["data"]["id"]].add(one.headers["webhook-id"])
    return dict(ids)


async def test_every_end_is_told_though_workers_and_delivery_workers_are_killed_all_the_time(
    formation: Formation, receiver: Receiver
) -> None:
    chance = random.Random(7)

    async def moody(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(chance.uniform(0, 0.1))
        writer.write(status(chance.choice([200, 200, 200, 500])))

    receiver.will(moody)
    await formation.scheduler()
    kept = [formation.start(*WORK), formation.start(*WORK), formation.start(*DELIVERY), formation.start(*DELIVERY)]
    await formation.workers("work:test", 2)
    jobs = await formation.submit(60, input={"do": "sleep", "s": 0.05}, hook=Hook(receiver.url, SECRET))
    for _ in range(6):
        await asyncio.sleep(0.4)
        chance.choice(kept).kill()
    ends = await formation.ends(jobs)
    assert all(one.status in TERMINAL for one in ends)
    delivered = Outbox(formation.queue.redis, formation.settings)

    async def all_told() -> bool:
        return (await delivered.standing()).pending == 0

    await until(all_told, f"nothing is left to be told\n{formation.logs()}", step_s=0.1)
    told = heard(receiver)
    assert set(told) == set(jobs)
    assert all(ids == {f"evt_{job.removeprefix('job_')}"} for job, ids in told.items())
    assert (await delivered.standing()).counts["delivered"] == 60


async def test_a_delivery_worker_that_dies_after_its_post_leads_to_the_same_event_again(
    formation: Formation, receiver: Receiver
) -> None:
    receiver.will(never)
    formation.start(*WORK)
    delivery = formation.start(*DELIVERY)
    (job,) = await formation.submit(hook=Hook(receiver.url, SECRET))
    await receiver.get(1, 30)
    delivery.again = False
    delivery.kill()
    receiver.will(status(200))
    formation.start(*DELIVERY)
    first, second = await receiver.get(2, 30)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"evt_{job.removeprefix('job_')}"
    assert first.body == second.body
    # It came back when the lease had ended (1 s for an attempt, and 2 s), and no sooner.
    assert 2 < second.at - first.at < 8


async def test_ends_are_told_after_redis_was_away(
    formation: Formation, receiver: Receiver, own_redis: RedisServer
) -> None:
    receiver.will(status(503))
    formation.start(*WORK)
    delivery = formation.start(*DELIVERY)
    jobs = await formation.submit(5, hook=Hook(receiver.url, SECRET))
    await receiver.get(5, 30)
    await formation.kill_redis()
    await asyncio.sleep(1)
    receiver.will(status(200))
    own_redis.start()

    async def all_told() -> bool:
        return (await Outbox(formation.queue.redis, formation.settings).standing()).pending == 0

    await until(all_told, f"nothing is left to be told\n{formation.logs()}", step_s=0.1)
    assert delivery.exits == []
    told = heard(receiver)
    assert set(told) == set(jobs)
    assert all(len(ids) == 1 for ids in told.values())


async def test_no_secret_is_in_a_log_or_a_metric_or_an_answer(formation: Formation, receiver: Receiver) -> None:
    receiver.will(status(500))
    formation.start("producer", name="web")
    formation.start(*WORK)
    formation.start(*DELIVERY, webhook_retry_s="[0.1]", name="delivery")
    async with formation.client() as client:
        await formation.web_answers(client)
        made = await client.post(
            "/v1/webhook_endpoints", json={"url": f"{receiver.url}?key=hidden", "event_types": ["*"]}
        )
        secret = made.json()["signing_secret"]
        (job,) = await formation.submit(hook=Hook(f"{receiver.url}?key=hidden", SECRET))

        async def given_up() -> bool:
            found = await client.get("/v1/webhook_deliveries", params={"status": "failed", "job": job})
            return len(found.json()["data"]) == 2

        await until(given_up, "both are given up", step_s=0.1)
        paths = ("/metrics", "/v1/webhook_deliveries", f"/v1/jobs/{job}", "/v1/webhook_endpoints")
        texts = [(await client.get(path)).text for path in paths]
    texts += [path.read_text() for path in formation.folder.glob("*.log")]
    assert any("is given up" in text for text in texts)
    assert not any(SECRET in text or secret in text for text in texts)
    assert not any("hidden" in text for text in [*texts[:3], *texts[4:]])  # an endpoint's own address is its user's
