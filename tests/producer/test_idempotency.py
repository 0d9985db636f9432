"""Sending again is safe: the same key and request are the same job, however many come at once."""

from __future__ import annotations

import asyncio
import time

import httpx
from fastapi import FastAPI

from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import GENERATION
from tests.producer.worker import PlayedWorker

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


async def test_the_same_key_and_request_are_the_same_job(client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    again = await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


async def test_the_same_request_of_one_who_waits_otherwise_is_the_same_job(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    first = await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    await worker.finish(await worker.claim())
    for how in ({"Prefer": "wait=1"}, {"Accept": "text/event-stream"}):
        again = await client.post("/v1/jobs", json=GENERATION, headers={**KEY, **how})
        assert again.headers["location"] == f"/v1/jobs/{first.json()['id']}"
        assert again.headers["idempotent-replayed"] == "true"


async def test_a_quoted_key_and_a_bare_one_are_the_same(client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/jobs", json=GENERATION, headers={"Idempotency-Key": '"k"'})
    again = await client.post("/v1/jobs", json=GENERATION, headers={"Idempotency-Key": "k"})
    assert first.json()["id"] == again.json()["id"]


async def test_fifty_at_once_are_one_job(client: httpx.AsyncClient) -> None:
    calls = [client.post("/v1/jobs", json=GENERATION, headers=KEY) for _ in range(50)]
    responses = await asyncio.gather(*calls)
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1
    (queue,) = [q for q in (await client.get("/v1/queues")).json()["data"] if q["queue"] == "generation:echo"]
    assert queue["depth"] == {"high": 0, "normal": 1, "low": 0}


async def test_a_finished_job_is_answered_with_200(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    await worker.finish(await worker.claim())
    again = await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    assert (again.status_code, again.json()["status"]) == (200, "completed")


async def test_another_request_with_the_key_is_refused(client: httpx.AsyncClient) -> None:
    await client.post("/v1/jobs", json=GENERATION, headers=KEY)
    other = await client.post("/v1/jobs", json={**GENERATION, "params": {"seed": 1}}, headers=KEY)
    assert other.status_code == 422
    assert problem_of(other)["field"] == "Idempotency-Key"


async def test_spelling_out_a_default_is_the_same_request(client: httpx.AsyncClient) -> None:
    plain = {**GENERATION, "run_at": "2020-01-01T00:00:00Z"}
    first = await client.post("/v1/jobs", json=plain, headers=KEY)
    same = {"run_at": 1577836800, "priority": "normal", "metadata": {}, "params": {"seed": None}, **GENERATION}
    again = await client.post("/v1/jobs", json=same, headers=KEY)
    assert first.json()["id"] == again.json()["id"]


async def test_a_delayed_request_is_the_same_when_it_comes_again_later(client: httpx.AsyncClient) -> None:
    later = {**GENERATION, "run_at": time.time() + 3600}
    first = await client.post("/v1/jobs", json=later, headers=KEY)
    again = await client.post("/v1/jobs", json=later, headers=KEY)
    assert first.json()["id"] == again.json()["id"]


async def test_another_users_key_is_another_key(client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/jobs", json={**GENERATION, "user": "ada"}, headers=KEY)
    other = await client.post("/v1/jobs", json={**GENERATION, "user": "bob"}, headers=KEY)
    assert (first.status_code, other.status_code) == (202, 202)
    assert first.json()["id"] != other.json()["id"]


async def test_the_key_itself_is_not_kept(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/jobs", json=GENERATION, headers={"Idempotency-Key": "my-secret-key"})
    redis = app.state.edge.queue.redis
    for name in await redis.keys("*"):
        assert b"my-secret-key" not in name
        if await redis.type(name) == b"string":
            assert b"my-secret-key" not in await redis.get(name)
