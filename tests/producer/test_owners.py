"""Whose things are whose: batches and their lines, retries, lists, ids inside requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.access import NewKey
from common.api_keys import ApiKeys, Asked
from common.errors import NotFound
from common.files import Files, list_of
from common.jobs import Ticket
from common.keys import Keys
from common.settings import Settings
from tests.producer.batching import CHAT, Do, ended, jsonl, line, made, runner_of, upload, work
from tests.producer.test_submit import GENERATION
from tests.producer.worker import PlayedWorker

__all__ = ["work"]  # a fixture


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Clocks that a test can wait for."""
    return settings.model_copy(update={"key_cache_s": 0.0, "lease_s": 2, "bell_timeout_s": 0.5, "batch_jobs": 8})


class Tenants:
    """A client for each key; `ann`, `bob` and the admin `root` have one each."""

    def __init__(self, app: FastAPI, keys: ApiKeys) -> None:
        self.app = app
        self.keys = keys
        self.of: dict[str, NewKey] = {}
        self.clients: dict[str, httpx.AsyncClient] = {}

    async def add(self, name: str, owner: str, *scopes: str) -> httpx.AsyncClient:
        """A client with a new key."""
        found = await self.keys.create(Asked(name=name, owner=owner, tier="custom", scopes=scopes or ("jobs",)), "test")
        assert found
        self.of[name] = found[1]
        headers = {"authorization": f"Bearer {found[1].text}"}
        client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", headers=headers)
        self.clients[name] = client
        return client


@pytest.fixture
async def tenants(app: FastAPI, keys: ApiKeys) -> AsyncIterator[Tenants]:
    """Two tenants and an admin."""
    found = Tenants(app, keys)
    await found.add("ann", "ann")
    await found.add("bob", "bob")
    await found.add("root", "root", "admin")
    yield found
    for client in found.clients.values():
        await client.aclose()


async def ticket(app: FastAPI, job: str) -> Ticket:
    """What the queue knows of a job."""
    queue = app.state.edge.queue
    text = await queue.redis.hget(queue.keys.job(job), "ticket")
    return Ticket.parse(text.decode())


async def test_a_batchs_lines_are_jobs_of_its_owner_with_its_key_and_only_its_end_is_told(
    app: FastAPI, tenants: Tenants, work: dict[str, Do]
) -> None:
    ann, bob = tenants.clients["ann"], tenants.clients["bob"]
    for client in (ann, bob):
        await client.post("/v1/webhook_endpoints", json={"url": "https://example.org/", "event_types": ["*"]})
    lines = jsonl(*(line(n, body={**line(n)["body"], "user": "an end user"}) for n in range(5)))
    async with runner_of(app):
        batch = await made(ann, lines)
        over = await ended(ann, batch["id"])
    assert over["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    jobs = (await ann.get("/v1/jobs")).json()["data"]
    assert {job["user"] for job in jobs} == {"ann"}
    assert {(await ticket(app, job["id"])).api_key for job in jobs} == {tenants.of["ann"].id}
    told = (await ann.get("/v1/webhook_deliveries")).json()["data"]
    assert [(one["type"], one["user"]) for one in told] == [("batch.completed", "ann")]
    assert (await bob.get("/v1/webhook_deliveries")).json()["data"] == []
    assert (await ann.get(f"/v1/files/{over['output_file_id']}/content")).status_code == 200
    assert (await bob.get(f"/v1/files/{over['output_file_id']}/content")).status_code == 404
    assert (await bob.get("/v1/jobs")).json()["data"] == []


async def test_a_batch_reads_no_file_and_no_response_of_another_owner(app: FastAPI, tenants: Tenants) -> None:
    ann, bob, root = (tenants.clients[name] for name in ("ann", "bob", "root"))
    recording = (await upload(bob, b"RIFF", purpose="user_data")).json()["id"]
    spoken = {"custom_id": "a", "method": "POST", "url": "/v1/audio/transcriptions"}
    body = {"model": "ears", "file_id": recording}
    asked = {"endpoint": "/v1/audio/transcriptions", "completion_window": "24h"}
    found = []
    async with runner_of(app):
        for client in (ann, root):
            file = (await upload(client, jsonl({**spoken, "body": body}))).json()["id"]
            batch = (await client.post("/v1/batches", json={**asked, "input_file_id": file})).json()
            found.append(await ended(client, batch["id"]))
    # An admin's batch is its owner's too, and runs with no more than its owner may.
    for one in found:
        assert one["status"] == "failed"
        assert one["errors"]["data"][0]["code"] == "not_found"


async def test_only_an_admin_makes_a_batch_or_an_endpoint_for_somebody_else(tenants: Tenants) -> None:
    ann, root = tenants.clients["ann"], tenants.clients["root"]
    endpoint = {"url": "https://example.org/", "event_types": ["*"], "user": "bob"}
    assert (await ann.post("/v1/webhook_endpoints", json=endpoint)).status_code == 403
    assert (await root.post("/v1/webhook_endpoints", json=endpoint)).json()["user"] == "bob"
    file = (await upload(ann, jsonl(line(0)))).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", "user": "bob"}
    refused = await ann.post("/v1/batches", json=asked)
    assert refused.status_code == 403
    assert refused.json()["error"]["param"] == "user"
    for_bob = (await root.post("/v1/batches", json=asked)).json()["id"]
    assert (await tenants.clients["bob"].get(f"/v1/batches/{for_bob}")).status_code == 200
    assert (await ann.get(f"/v1/batches/{for_bob}")).status_code == 404


async def test_one_idempotency_key_of_two_keys_is_two_batches(tenants: Tenants) -> None:
    ids = set()
    for name in ("ann", "bob"):
        client = tenants.clients[name]
        file = (await upload(client, jsonl(line(0)))).json()["id"]
        asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        for _ in range(2):
            answer = await client.post("/v1/batches", json=asked, headers={"Idempotency-Key": "same"})
            ids.add(answer.json()["id"])
    assert len(ids) == 2


async def test_a_retry_and_a_replay_stay_their_owners_whoever_asks(app: FastAPI, tenants: Tenants) -> None:
    ann, root = tenants.clients["ann"], tenants.clients["root"]
    job = (await ann.post("/v1/jobs", json=GENERATION)).json()["id"]
    await root.post(f"/v1/jobs/{job}/cancel")
    again = (await root.post(f"/v1/jobs/{job}/retry")).json()
    assert again["user"] == "ann"
    assert (await ticket(app, again["id"])).api_key == tenants.of["ann"].id
    assert (await ann.post(f"/v1/jobs/{job}/retry")).json()["id"] == again["id"]


async def test_a_list_names_nobody_else_and_an_admins_names_all(tenants: Tenants) -> None:
    ann, bob, root = (tenants.clients[name] for name in ("ann", "bob", "root"))
    for client in (ann, bob):
        await client.post("/v1/jobs", json=GENERATION)
    assert (await ann.get("/v1/jobs", params={"user": "ann"})).status_code == 200
    refused = await ann.get("/v1/jobs", params={"user": "bob"})
    assert (refused.status_code, refused.json()["field"]) == (403, "user")
    assert {job["user"] for job in (await root.get("/v1/jobs")).json()["data"]} == {"ann", "bob"}
    assert {job["user"] for job in (await root.get("/v1/jobs", params={"user": "bob"})).json()["data"]} == {"bob"}


async def test_a_page_of_ones_own_files_is_full_however_many_others_have(tenants: Tenants) -> None:
    ann, bob = tenants.clients["ann"], tenants.clients["bob"]
    mine = []
    for number in range(6):
        mine.append((await upload(ann, b"x")).json()["id"])
        await upload(bob, b"%d" % number)
    first = (await ann.get("/v1/files", params={"limit": 4})).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (mine[::-1][:4], True)
    rest = (await ann.get("/v1/files", params={"limit": 4, "after": first["last_id"]})).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (mine[:2][::-1], False)
    await ann.delete(f"/v1/files/{mine[0]}")
    assert mine[0] not in (await ann.get("/v1/files")).text


async def test_the_lists_of_owners_forget_what_is_gone(app: FastAPI, settings: Settings) -> None:
    files: Files = app.state.edge.files
    prefix = Keys(settings.namespace, settings.shards).files
    kept = await files.put(BytesIO(b"x"), 1, "x", "batch", 3600, "ann")
    await files.redis.delete(f"{prefix}file:{kept.id}")  # its time is over
    await files.tidy()
    assert not await files.redis.exists(list_of(prefix, "files", None))
    assert not await files.redis.exists(list_of(prefix, "files", "ann"))
    assert not await files.redis.exists(f"{prefix}files:owners")


async def test_a_response_goes_on_from_ones_own_alone(app: FastAPI, tenants: Tenants) -> None:
    ann, bob = tenants.clients["ann"], tenants.clients["bob"]
    worker = PlayedWorker(app.state.edge.queue, "generation:echo")
    asking = asyncio.create_task(ann.post("/v1/responses", json={"model": "echo", "input": "secret of ann's"}))
    await worker.finish(await worker.next(), {"text": "yes", "finish_reason": "stop"})
    response = (await asking).json()["id"]
    body: dict[str, Any] = {"model": "echo", "input": "go on", "previous_response_id": response, "background": True}
    refused = await bob.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert (await ann.post("/v1/responses", json=body)).status_code == 200


async def test_headers_that_name_a_tenant_change_nothing(app: FastAPI, tenants: Tenants) -> None:
    forged = {
        "x-llm-d-inference-fairness-id": "bob",
        "x-gateway-inference-fairness-id": "bob",
        "x-llm-d-inference-objective": "high",
        "x-forwarded-user": "bob",
    }
    job = (await tenants.clients["ann"].post("/v1/jobs", json=GENERATION, headers=forged)).json()
    assert job["user"] == "ann"
    queue = app.state.edge.queue
    record = await queue.redis.hgetall(queue.keys.job(job["id"]))
    assert not any(b"bob" in value for value in record.values())


async def test_the_store_itself_keeps_owners_apart(app: FastAPI, tenants: Tenants) -> None:
    job = (await tenants.clients["ann"].post("/v1/jobs", json=GENERATION)).json()["id"]
    results = app.state.edge.results
    for read in (results.record, results.look, results.whole):
        await read(job, owner="ann")
        with pytest.raises(NotFound):
            await read(job, owner="bob")
    with pytest.raises(NotFound):
        await results.finished(job, 5, owner="bob")


async def test_what_an_admin_does_to_others_things_is_audited_and_what_owners_do_is_not(tenants: Tenants) -> None:
    ann, root = tenants.clients["ann"], tenants.clients["root"]
    job, own = [(await client.post("/v1/jobs", json=GENERATION)).json()["id"] for client in (ann, root)]
    file = (await upload(ann, jsonl(line(0)))).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = (await ann.post("/v1/batches", json=asked)).json()["id"]
    endpoint = (
        await ann.post("/v1/webhook_endpoints", json={"url": "https://example.org/", "event_types": ["*"]})
    ).json()["id"]
    await root.post(f"/v1/jobs/{own}/cancel")
    await ann.post(f"/v1/jobs/{job}/cancel")
    await root.get(f"/v1/jobs/{job}")
    await root.post(f"/v1/jobs/{job}/cancel")
    await root.post(f"/v1/jobs/{job}/retry")
    await root.post(f"/v1/batches/{batch}/cancel")
    await root.delete(f"/v1/files/{file}")
    await root.get(f"/v1/webhook_endpoints/{endpoint}")
    await root.delete(f"/v1/webhook_endpoints/{endpoint}")
    await root.post("/v1/parked/nothing/replay")
    found = (await root.get("/v1/admin/audit")).json()["data"]
    said = [(one["actor"], one["action"], one["thing"], one["owner"]) for one in found if one["action"][0].isupper()]
    admin = f"key:{tenants.of['root'].id}"
    assert said[::-1] == [
        (admin, "POST /v1/jobs/{job_id}/cancel", job, "ann"),
        (admin, "POST /v1/jobs/{job_id}/retry", job, "ann"),
        (admin, "POST /v1/batches/{batch_id}/cancel", batch, "ann"),
        (admin, "DELETE /v1/files/{file_id}", file, "ann"),
        (admin, "DELETE /v1/webhook_endpoints/{endpoint_id}", endpoint, "ann"),
        (admin, "POST /v1/parked/{parked_id}/replay", "nothing", ""),
    ]


async def test_a_page_of_ones_own_jobs_is_full_however_many_others_have(app: FastAPI, tenants: Tenants) -> None:
    ann, bob = tenants.clients["ann"], tenants.clients["bob"]
    mine = [(await ann.post("/v1/jobs", json=GENERATION)).json()["id"] for _ in range(3)]
    for _ in range(6):
        await bob.post("/v1/jobs", json=[GENERATION] * 1000)
    page = (await ann.get("/v1/jobs", params={"limit": 2})).json()
    assert [one["id"] for one in page["data"]] == mine[:0:-1]
    rest = (await ann.get("/v1/jobs", params={"limit": 2, "after": page["next"]})).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (mine[:1], False)


async def test_the_list_of_an_owners_jobs_forgets_those_that_are_gone(app: FastAPI, tenants: Tenants) -> None:
    queue = app.state.edge.queue
    job = (await tenants.clients["ann"].post("/v1/jobs", json=GENERATION)).json()["id"]
    prefix = queue.keys.of_job(job)
    assert await queue.redis.exists(f"{prefix}index:of:ann")
    await queue.erase(job)
    await queue.trim(prefix)
    assert not await queue.redis.exists(f"{prefix}index:of:ann")


async def test_one_owner_leaves_room_for_others(app: FastAPI, tenants: Tenants, settings: Settings) -> None:
    ann, bob = tenants.clients["ann"], tenants.clients["bob"]
    own = settings.model_copy(update={"max_owner_files": 2, "max_owner_batches": 1})
    edge = app.state.edge
    edge.files.settings = edge.batches.settings = own
    files = [(await upload(ann, jsonl(line(0)))).json()["id"] for _ in range(2)]
    refused = await upload(ann, b"x")
    assert (refused.status_code, "2 files of ann" in refused.text) == (429, True)
    assert (await upload(bob, b"x")).status_code == 200
    await ann.delete(f"/v1/files/{files[1]}")
    assert (await upload(ann, b"x")).status_code == 200

    asked = {"input_file_id": files[0], "endpoint": CHAT, "completion_window": "24h"}
    first = (await ann.post("/v1/batches", json=asked)).json()["id"]
    refused = await ann.post("/v1/batches", json=asked)
    assert (refused.status_code, "1 unfinished batches of ann" in refused.text) == (429, True)
    async with runner_of(app):
        await ann.post(f"/v1/batches/{first}/cancel")
        await ended(ann, first)
    assert (await ann.post("/v1/batches", json=asked)).status_code == 200
