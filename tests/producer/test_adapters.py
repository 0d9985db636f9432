"""A job for an adapter: it waits where its base model's workers look, and keeps the alias that was asked for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.producer.worker import PlayedWorker

TERSE: dict[str, Any] = {"kind": "generation", "model": "terse", "input": {"prompt": "Say it."}}


@pytest.fixture
def words(app: FastAPI) -> PlayedWorker:
    """A worker of the adapter's base model."""
    return PlayedWorker(app.state.edge.queue, "generation:words")


async def test_an_adapters_job_is_run_by_its_base_models_worker_and_keeps_its_alias(
    client: httpx.AsyncClient, words: PlayedWorker
) -> None:
    accepted = (await client.post("/v1/jobs", json=TERSE)).json()
    base = (await client.post("/v1/jobs", json={**TERSE, "model": "words"})).json()
    jobs = {job.id: job for job in await words.claim_many(2)}
    asked = {job_id: (job.spec.model, job.spec.base, job.spec.queue) for job_id, job in jobs.items()}
    assert asked == {
        accepted["id"]: ("terse", "words", "generation:words"),
        base["id"]: ("words", "", "generation:words"),
    }
    await words.finish(jobs[accepted["id"]])
    record = (await client.get(f"/v1/jobs/{accepted['id']}")).json()
    result = (await client.get(f"/v1/jobs/{accepted['id']}/result")).json()
    assert (accepted["model"], record["model"], result["model"]) == ("terse", "terse", "terse")
    listed = (await client.get("/v1/jobs", params={"model": "terse"})).json()["data"]
    assert [job["id"] for job in listed] == [accepted["id"]]


async def test_a_retried_job_asks_the_same_adapter(client: httpx.AsyncClient, words: PlayedWorker) -> None:
    job_id = (await client.post("/v1/jobs", json=TERSE)).json()["id"]
    await words.fail(await words.claim())
    assert (await client.post(f"/v1/jobs/{job_id}/retry")).json()["model"] == "terse"
    assert (await words.claim()).spec.model == "terse"


async def test_a_prompt_for_an_adapter_must_fit_its_base_model(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={**TERSE, "input": {"prompt": "word " * 16}})
    assert response.status_code == 422
    assert "at most 15 tokens for the model words" in response.text


async def test_the_same_key_for_the_base_and_its_adapter_is_another_request(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    assert (await client.post("/v1/jobs", json=TERSE, headers=key)).status_code == 202
    assert (await client.post("/v1/jobs", json={**TERSE, "model": "words"}, headers=key)).status_code == 422
