"""An answer may be held until the job is done; not longer than was asked, and not for a caller who has gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from producer.__main__ import Server
from tests.producer.test_submit import EMBEDDING, GENERATION
from tests.producer.worker import PlayedWorker, until

OUTPUT = {"text": "It.", "finish_reason": "stop"}


async def submitted(client: httpx.AsyncClient, **changes: Any) -> str:
    response = await client.post("/v1/jobs", json={**GENERATION, **changes})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def run_one(worker: PlayedWorker) -> None:
    await worker.finish(await worker.next(), OUTPUT)


async def test_a_caller_who_waits_gets_the_result_inline(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    call = client.post("/v1/jobs", json=GENERATION, headers={"Prefer": "wait=5"})
    response, _ = await asyncio.gather(call, run_one(worker))
    record = response.json()
    assert (response.status_code, record["status"]) == (200, "completed")
    assert record["result"]["output"] == OUTPUT
    assert response.headers["preference-applied"] == "wait=5"
    assert response.headers["location"] == record["links"]["self"]


async def test_a_job_that_is_not_done_in_time_is_answered_with_202(client: httpx.AsyncClient) -> None:
    started = time.perf_counter()
    prefer = {"Prefer": "respond-async, wait=1"}
    response = await client.post("/v1/jobs", json=GENERATION, headers=prefer)
    assert 0.9 < time.perf_counter() - started < 2
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1, respond-async"
    assert response.headers["retry-after"] == "1"
    assert "result" not in response.json()


async def test_respond_async_alone_does_not_wait(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json=GENERATION, headers={"Prefer": "respond-async"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "respond-async")


async def test_a_job_that_fails_while_waited_for_says_why(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    call = asyncio.create_task(client.post("/v1/jobs", json=GENERATION, headers={"Prefer": "wait=5"}))
    await worker.fail(await worker.next())
    response = await call
    record = response.json()
    assert (response.status_code, record["status"]) == (200, "failed")
    assert record["error"] == record["result"]["error"] == {"code": "broken", "message": "it broke"}
    assert record["result"]["output"] is None


@pytest.mark.parametrize("path", ["/v1/jobs/{id}", "/v1/jobs/{id}/result"])
async def test_a_get_can_wait_too(client: httpx.AsyncClient, worker: PlayedWorker, path: str) -> None:
    job_id = await submitted(client)
    call = client.get(path.format(id=job_id), params={"wait": 5})
    response, _ = await asyncio.gather(call, run_one(worker))
    assert (response.status_code, response.json()["status"]) == (200, "completed")


async def test_a_cancel_ends_the_wait(client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    call = asyncio.create_task(client.get(f"/v1/jobs/{job_id}?wait=5"))
    cancelled = await client.post(f"/v1/jobs/{job_id}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    async with asyncio.timeout(2):  # by the news of it, not by the look every four seconds
        assert (await call).json()["status"] == "cancelled"


async def test_a_result_that_is_not_there_is_202(client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert (response.status_code, response.headers["retry-after"]) == (202, "1")
    assert response.json() == {
        "id": job_id, "kind": "generation", "model": "echo", "status": "queued", "output": None, "usage": None,
        "error": None,
    }  # fmt: skip


async def test_a_result_has_what_the_worker_made(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    output = {"embeddings": [[0.25, -0.5], [1.0, 0.0]], "dimensions": 2}
    job_id = (await client.post("/v1/jobs", json=EMBEDDING)).json()["id"]
    played = PlayedWorker(worker.queue, "embedding:vectors")
    await played.finish(await played.claim(), output)
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert response.status_code == 200
    assert response.json() == {
        "id": job_id, "kind": "embedding", "model": "vectors", "status": "completed", "output": output,
        "usage": {"total_tokens": 3}, "error": None,
    }  # fmt: skip


async def test_a_caller_who_leaves_is_not_waited_for(live: httpx.AsyncClient, server: Server) -> None:
    job_id = await submitted(live)
    wakes = server.web.state.edge.results.wakes
    with pytest.raises(httpx.ReadTimeout):
        await live.get(f"/v1/jobs/{job_id}?wait=5", timeout=0.3)
    await until(lambda: not wakes._listeners)


async def test_a_stopping_process_lets_waiting_callers_go(live: httpx.AsyncClient, server: Server) -> None:
    job_id = await submitted(live)
    call = asyncio.create_task(live.get(f"/v1/jobs/{job_id}?wait=5"))
    wakes = server.web.state.edge.results.wakes
    await until(lambda: wakes._listeners)
    server.should_exit = True
    async with asyncio.timeout(2):
        assert (await call).json()["status"] == "queued"
