"""Webhooks over HTTP: asked for beside a job or an OpenAI call, standing endpoints through OpenAI's SDK, deliveries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from standardwebhooks.webhooks import Webhook

from common.outbox import Outbox
from common.queue import Queue
from common.settings import Settings
from common.webhooks import new_secret
from producer.__main__ import Server
from tests.conformance.world import eventually
from tests.producer.test_refusals import problem_of
from tests.producer.worker import PlayedWorker
from tests.receiver import Receiver, never, status
from workers.delivery import Deliverer

JOB = {"kind": "generation", "model": "echo", "input": {"prompt": "hello"}}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
SECRET = new_secret()
HOOK = {"url": "https://example.org/hook?token=hidden", "secret": SECRET}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Loopback is exempt, the schedule is short."""
    short = {"bell_timeout_s": 0.5, "webhook_timeout_s": 1, "webhook_retry_s": (0.1,)}
    return settings.model_copy(update={"webhook_allow": "127.0.0.1", **short})


@pytest.fixture
async def deliverer(settings: Settings) -> AsyncIterator[Deliverer]:
    """A delivery worker in this process."""
    queue = await Queue.connect(settings)
    made = Deliverer(queue)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await queue.close()


@pytest.fixture
async def sdk(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK, pointed at the server."""
    port = server.servers[0].sockets[0].getsockname()[1]
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as made:
        yield made


async def outbox_of(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    response = await client.get("/v1/webhook_deliveries", params=query)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_a_jobs_webhook_is_told_of_its_end_and_never_shows_its_secret(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    response = await client.post("/v1/jobs", json={**JOB, "webhook": HOOK})
    assert response.status_code == 202
    job_id = response.json()["id"]
    await worker.finish(await worker.claim())
    (delivery,) = await outbox_of(client, job=job_id)
    assert (delivery["type"], delivery["status"], delivery["attempts"]) == ("job.completed", "pending", 0)
    assert delivery["url"] == "https://example.org/hook?…"
    texts = [response.text, json.dumps(delivery), (await client.get(f"/v1/jobs/{job_id}")).text]
    assert not any(SECRET in text or "hidden" in text for text in texts)


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ({}, "webhook.url"),
        ({"url": "http://example.org/"}, None),  # may be an exempt address: known when it is looked up
        ({"url": "ftp://example.org/"}, "webhook.url"),
        ({"url": "https://169.254.169.254/"}, "webhook.url"),
        ({"url": "https://0x7f000001/"}, "webhook.url"),
        ({"url": "https://user:pass@example.org/"}, "webhook.url"),
        ({"url": "https://example.org/" + "a" * 2048}, "webhook.url"),
        ({"url": 7}, "webhook.url"),
        ({"url": "https://example.org/", "secret": "hush"}, "webhook.secret"),
        ({"url": "https://example.org/", "events": []}, "webhook.events"),
        ({"url": "https://example.org/", "events": ["batch.completed"]}, "webhook.events"),
        ({"url": "https://example.org/", "payload": "fat"}, "webhook.payload"),
        ({"url": "https://example.org/", "method": "GET"}, "webhook.method"),
        ("https://example.org/", "webhook"),
    ],
)
async def test_what_is_wrong_with_a_webhook_is_named_and_nothing_is_queued(
    client: httpx.AsyncClient, webhook: Any, field: str | None
) -> None:
    response = await client.post("/v1/jobs", json={**JOB, "webhook": webhook})
    if field is None:
        assert response.status_code == 202
        return
    assert response.status_code == 422
    assert str(problem_of(response)["field"]).endswith(field)
    assert "hush" not in response.text
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_webhooks_go_nowhere_private_unless_the_operator_says_so(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    assert (await client.post("/v1/jobs", json={**JOB, "webhook": {"url": receiver.url}})).status_code == 202
    private = {"url": receiver.url.replace("127.0.0.1", "127.0.0.2")}
    assert (await client.post("/v1/jobs", json={**JOB, "webhook": private})).status_code == 422


async def test_the_same_key_with_another_webhook_is_another_request(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one"}
    for webhook, code in ((HOOK, 202), (HOOK, 202), ({**HOOK, "payload": "full"}, 422)):
        response = await client.post("/v1/jobs", json={**JOB, "webhook": webhook}, headers=headers)
        assert response.status_code == code


async def test_a_webhook_beside_openais_bodies_is_told(client: httpx.AsyncClient) -> None:
    calls: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": CHAT,
        "/v1/completions": {"model": "echo", "prompt": "hello"},
        "/v1/embeddings": {"model": "vectors", "input": "hello"},
    }
    for path, body in calls.items():
        response = await client.post(path, json={**body, "webhook": HOOK}, headers={"Prefer": "respond-async"})
        assert response.status_code == 202, response.text
        await client.post(f"{response.headers['location']}/cancel")
        (delivery,) = await outbox_of(client, job=response.json()["id"])
        assert delivery["type"] == "job.cancelled"
    wrong = await client.post("/v1/chat/completions", json={**CHAT, "webhook": {"url": "https://10.0.0.1/"}})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "webhook.url"


async def test_a_recordings_webhook_is_a_field_of_its_form(client: httpx.AsyncClient) -> None:
    file = {"file": ("a.wav", b"RIFF")}
    form = {"model": "ears", "webhook": json.dumps(HOOK)}
    headers = {"Prefer": "respond-async"}
    response = await client.post("/v1/audio/transcriptions", data=form, files=file, headers=headers)
    assert response.status_code == 202, response.text
    await client.post(f"{response.headers['location']}/cancel")
    assert len(await outbox_of(client, job=response.json()["id"])) == 1
    wrong = await client.post("/v1/audio/transcriptions", data={**form, "webhook": "{"}, files=file)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "webhook")


async def test_the_sdk_manages_endpoints_and_unwraps_what_they_get(
    sdk: openai.AsyncOpenAI, live: httpx.AsyncClient, deliverer: Deliverer, receiver: Receiver
) -> None:
    made = await sdk.webhooks.create(
        url=receiver.url, name="mine", event_types=["response.completed", "batch.failed"], extra_body={"user": "ann"}
    )
    assert made.signing_secret.startswith("whsec_")
    assert (await sdk.webhooks.retrieve(made.id)).name == "mine"
    listed = [one async for one in sdk.webhooks.list(extra_query={"user": "ann"})]
    assert [one.id for one in listed] == [made.id]
    assert "signing_secret" not in listed[0].model_dump()
    assert made.signing_secret not in (await live.get("/v1/webhook_endpoints")).text

    tried = await sdk.webhooks.test(made.id, event_type="response.completed")
    assert (tried.status_code, tried.event_type) == (200, "response.completed")
    event = sdk.webhooks.unwrap(receiver.received[0].body, receiver.received[0].headers, secret=made.signing_secret)
    assert event.type == "response.completed"

    rotated = await sdk.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    await sdk.webhooks.test(made.id, event_type="batch.failed")
    for secret in (made.signing_secret, rotated.signing_secret):
        sdk.webhooks.unwrap(receiver.received[1].body, receiver.received[1].headers, secret=secret)
    last = await sdk.webhooks.rotate_secret(made.id)
    await sdk.webhooks.test(made.id, event_type="batch.failed")
    Webhook(last.signing_secret).verify(receiver.received[2].body, receiver.received[2].headers)
    got = receiver.received[2]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(got.body, got.headers, secret=rotated.signing_secret)

    changed = await sdk.webhooks.update(made.id, name="theirs", event_types=["batch.completed"])
    assert (changed.name, changed.event_types) == ("theirs", ["batch.completed"])
    assert "batch.completed" in (await sdk.webhooks.event_types.list()).data
    assert (await sdk.webhooks.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.webhooks.retrieve(made.id)


async def test_a_sample_that_nobody_answers_is_an_error_in_words(
    sdk: openai.AsyncOpenAI, deliverer: Deliverer, receiver: Receiver
) -> None:
    made = await sdk.webhooks.create(url=receiver.url, name="mine", event_types=["batch.failed"])
    receiver.will(never)
    with pytest.raises(openai.APIStatusError, match="no answer within 1 s"):
        await sdk.webhooks.test(made.id, event_type="batch.failed")
    receiver.will(status(500))
    assert (await sdk.webhooks.test(made.id, event_type="batch.failed")).status_code == 500
    await asyncio.sleep(0.3)  # longer than the pause before another attempt, which a sample does not get
    assert len(receiver.received) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"event_types": ["*"]}, "url"),
        ({"url": "https://10.0.0.1/", "event_types": ["*"]}, "url"),
        ({"url": "https://example.org/", "event_types": []}, "event_types"),
        ({"url": "https://example.org/", "event_types": ["eval.run.failed"]}, "event_types"),
        ({"url": "https://example.org/", "event_types": ["*"], "user": "a b"}, "user"),
        ({"url": "https://example.org/", "event_types": ["*"], "secret": "hush-hush"}, "secret"),
        ({"url": "https://example.org/", "event_types": ["*"], "filter": 1}, "filter"),
    ],
)
async def test_what_is_wrong_with_an_endpoint_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/webhook_endpoints", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert "hush-hush" not in response.text


async def test_an_ed25519_endpoint_tells_its_public_key_at_any_time_and_its_private_one_once(
    client: httpx.AsyncClient,
) -> None:
    body = {"url": "https://example.org/", "event_types": ["*"], "signature": "ed25519"}
    made = (await client.post("/v1/webhook_endpoints", json=body)).json()
    assert made["signing_secret"].startswith("whsk_")
    shown = (await client.get(f"/v1/webhook_endpoints/{made['id']}")).json()
    assert shown["public_key"].startswith("whpk_")
    assert "signing_secret" not in shown
    rotated = (await client.post(f"/v1/webhook_endpoints/{made['id']}/rotate_secret")).json()
    assert rotated["signing_secret"].startswith("whsk_")
    assert rotated["public_key"] != shown["public_key"]


async def test_an_endpoint_is_switched_off_and_on(client: httpx.AsyncClient) -> None:
    made = (
        await client.post("/v1/webhook_endpoints", json={"url": "https://example.org/", "event_types": ["*"]})
    ).json()
    path = f"/v1/webhook_endpoints/{made['id']}"
    off = (await client.post(path, json={"enabled": False})).json()
    assert (off["status"], off["disabled_reason"]) == ("disabled", "by request")
    for expected in (0, 1):
        job_id = (await client.post("/v1/jobs", json=JOB)).json()["id"]
        await client.post(f"/v1/jobs/{job_id}/cancel")
        assert len(await outbox_of(client, job=job_id)) == expected
        await client.post(path, json={"enabled": True})


async def test_a_delivery_is_inspected_and_sent_again(
    live: httpx.AsyncClient, deliverer: Deliverer, receiver: Receiver, settings: Settings
) -> None:
    receiver.will(status(500, body="not today"))
    job_id = (await live.post("/v1/jobs", json={**JOB, "webhook": {"url": receiver.url}})).json()["id"]
    await live.post(f"/v1/jobs/{job_id}/cancel")

    async def given_up() -> list[dict[str, Any]]:
        return await outbox_of(live, job=job_id, status="failed")

    (delivery,) = await eventually(given_up)
    path = f"/v1/webhook_deliveries/{delivery['id']}"
    found = (await live.get(path)).json()
    assert [(one["status"], one["shown"], one["address"]) for one in found["log"]] == [
        (500, "not today", "127.0.0.1")
    ] * 2
    receiver.will(status(200))
    again = await live.post(f"{path}/redeliver")
    assert again.status_code == 202

    async def delivered() -> bool:
        return bool((await live.get(path)).json()["status"] == "delivered")

    await eventually(delivered)
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    counts = (await Outbox(deliverer.outbox.redis, settings).standing()).counts
    text = (await live.get("/metrics")).text
    assert 'jarvis_webhook_attempts_total{outcome="500"} 2.0' in text
    assert 'jarvis_webhook_attempts_total{outcome="good"} 1.0' in text
    assert 'jarvis_webhook_deliveries_total{status="failed"} 1.0' in text
    assert "jarvis_webhook_deliveries_pending 0.0" in text
    assert counts["delivered"] == 1


async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    for method, path in (
        ("GET", "/v1/webhook_deliveries/dlv_00x"),
        ("POST", "/v1/webhook_deliveries/nonsense/redeliver"),
        ("GET", "/v1/webhook_endpoints/we_00x"),
        ("DELETE", "/v1/webhook_endpoints/we_00" + "0" * 24),
        ("POST", "/v1/webhook_endpoints/we_zz/rotate_secret"),
    ):
        response = await client.request(method, path)
        assert response.status_code == 404, path
