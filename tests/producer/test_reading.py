"""Records, lists, queues, parked jobs, and what may be done to a job once it is there."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from producer.answers import JobOut, JobsOut, ModelsOut, ParkedListOut, QueuesOut, ReadyOut, ResultOut, WorkersOut
from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import EMBEDDING
from tests.producer.test_waiting import submitted
from tests.producer.worker import PlayedWorker


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    response = await client.get("/v1/jobs", params=query)
    assert response.status_code == 200, response.text
    return [record["id"] for record in JobsOut.model_validate(response.json()).model_dump()["data"]]


async def test_a_record_follows_the_job(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await submitted(client)
    job = await worker.claim()
    running = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (running["status"], running["claims"], running["queue_position"]) == ("in_progress", 1, None)
    await worker.finish(job)
    done = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert JobOut.model_validate(done).model_dump(mode="json") == done
    assert (done["status"], done["usage"], done["error"]) == ("completed", {"total_tokens": 3}, None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert done["metrics"]["queue_ms"] >= 0
    assert done["metrics"]["run_ms"] >= 0


async def test_the_links_of_a_record_lead_on(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    record = (await client.get(f"/v1/jobs/{await submitted(client)}")).json()
    await worker.finish(await worker.claim())
    for name in ("self", "result", "events"):
        assert (await client.get(record["links"][name])).status_code == 200
    assert (await client.post(record["links"]["cancel"])).status_code == 200


async def test_a_waiting_job_tells_its_place_and_why_it_waits(client: httpx.AsyncClient) -> None:
    ids = [await submitted(client) for _ in range(3)]
    positions = [(await client.get(f"/v1/jobs/{job_id}")).json()["queue_position"] for job_id in ids]
    assert positions == [1, 2, 3]


async def test_a_failed_job_has_a_result_that_says_why(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await submitted(client)
    await worker.fail(await worker.claim(), "prompt_too_long")
    response = await client.get(f"/v1/jobs/{job_id}/result")
    result = response.json()
    assert ResultOut.model_validate(result).model_dump(mode="json") == result
    assert (response.status_code, result["status"], result["output"]) == (200, "failed", None)
    assert result["error"]["code"] == "prompt_too_long"


async def test_cancel_is_idempotent_and_leaves_the_terminal_alone(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    job_id = await submitted(client)
    first = await client.post(f"/v1/jobs/{job_id}/cancel")
    again = await client.post(f"/v1/jobs/{job_id}/cancel")
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()) == (200, first.json())
    done = await submitted(client)
    await worker.finish(await worker.claim())
    response = await client.post(f"/v1/jobs/{done}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "completed")


async def test_retry_makes_one_new_job_of_a_failed_one(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await submitted(client, user="ada", priority="high", metadata={"a": "b"})
    await worker.fail(await worker.claim())
    first = await client.post(f"/v1/jobs/{job_id}/retry")
    again = await client.post(f"/v1/jobs/{job_id}/retry")
    record = first.json()
    assert (first.status_code, first.headers["location"]) == (202, record["links"]["self"])
    assert record["id"] == again.json()["id"] != job_id
    assert record["retry_of"] == job_id
    assert (record["user"], record["priority"], record["metadata"]) == ("ada", "high", {"a": "b"})
    assert (await client.get(f"/v1/jobs/{job_id}")).json()["status"] == "failed"


async def test_retry_of_what_runs_or_has_completed_is_409(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await submitted(client)
    response = await client.post(f"/v1/jobs/{job_id}/retry")
    assert (response.status_code, problem_of(response)["state"]) == (409, "queued")
    await worker.finish(await worker.claim())
    response = await client.post(f"/v1/jobs/{job_id}/retry")
    assert (response.status_code, problem_of(response)["state"]) == (409, "completed")


async def test_jobs_are_listed_newest_first_and_filtered(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    first = await submitted(client, user="ada")
    second = await submitted(client, user="bob")
    third = (await client.post("/v1/jobs", json={**EMBEDDING, "user": "ada"})).json()["id"]
    await worker.finish(await worker.claim())
    assert await listed(client) == [third, second, first]
    assert await listed(client, user="ada") == [third, first]
    assert await listed(client, kind="embedding") == [third]
    assert await listed(client, model="echo") == [second, first]
    assert len(await listed(client, status="completed")) == 1
    assert await listed(client, user="nobody") == []


async def test_pages_follow_each_other_without_a_gap(client: httpx.AsyncClient) -> None:
    ids = [await submitted(client) for _ in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    for _ in range(9):
        page = (await client.get("/v1/jobs", params=query)).json()
        seen += [record["id"] for record in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert seen == ids[::-1]


async def test_queues_tell_depth_by_lane_and_name_those_never_used(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    await submitted(client, priority="high")
    for _ in range(2):
        await submitted(client, priority="low")
    await worker.claim()
    await worker.queue.renew("generation:echo", "w1", b"{}", [])
    response = (await client.get("/v1/queues")).json()
    assert QueuesOut.model_validate(response).model_dump(mode="json") == response
    queues = {queue["queue"]: queue for queue in response["data"]}
    assert list(queues) == ["embedding:vectors", "generation:echo", "generation:words", "transcription:ears"]
    used = queues["generation:echo"]
    assert used["depth"] == {"high": 0, "normal": 0, "low": 2}
    assert (used["in_progress"], used["workers"]) == (1, 1)
    assert used["oldest_wait_s"] >= 0
    assert queues["generation:words"]["oldest_wait_s"] is None


async def test_live_workers_are_listed_with_the_gpu_that_each_holds(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    assert (await client.get("/v1/workers")).json() == {"object": "list", "data": []}
    about = {"id": "w1", "host": "node", "pid": 7, "slots": 4, "device": "GPU 1 (L4)", "gpu_share": 0.4, "more": 1}
    await submitted(client)
    await worker.queue.renew("generation:echo", "w1", msgspec.json.encode(about), [])
    response = (await client.get("/v1/workers")).json()
    assert WorkersOut.model_validate(response).model_dump(mode="json") == response
    (entry,) = response["data"]
    del about["more"]
    assert entry == about | {"queue": "generation:echo", "started_at": None}


async def poisoned(client: httpx.AsyncClient, worker: PlayedWorker, app: FastAPI) -> str:
    """A job that was parked, since workers died under it."""
    queue = app.state.edge.queue
    queue.settings = app.state.edge.settings.model_copy(update={"lease_s": 0.001, "max_deaths": 1})
    job_id = await submitted(client)
    for _ in range(3):
        await worker.claim_many(1)
        await client.get("/healthz")
        await queue.rescue(queue.keys.prefixes()[0])
    queue.settings = app.state.edge.settings
    return job_id


async def test_a_parked_job_is_listed_and_can_be_replayed(
    client: httpx.AsyncClient, worker: PlayedWorker, app: FastAPI
) -> None:
    job_id = await poisoned(client, worker, app)
    page = (await client.get("/v1/parked")).json()
    assert ParkedListOut.model_validate(page).model_dump(mode="json") == page
    (entry,) = page["data"]
    assert (entry["id"], entry["queue"], page["next"]) == (job_id, "generation:echo", None)
    response = await client.post(f"/v1/parked/{job_id}/replay")
    assert (response.status_code, response.json()["retry_of"]) == (202, job_id)
    assert (await client.get("/v1/parked")).json()["data"] == []


async def test_the_models_of_the_catalogue_are_listed(client: httpx.AsyncClient) -> None:
    response = (await client.get("/v1/models")).json()
    assert ModelsOut.model_validate(response).model_dump(mode="json") == response
    listed = [(model["id"], model["parent"]) for model in response["data"]]
    assert listed == [("echo", None), ("words", None), ("terse", "words"), ("vectors", None), ("ears", None)]


async def test_health_and_readiness(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    await submitted(client)
    await worker.queue.renew("generation:echo", "w1", b"{}", [])
    ready = (await client.get("/readyz")).json()
    assert ReadyOut.model_validate(ready).model_dump(mode="json") == ready
    assert ready["workers"]["generation:echo"] == 1


async def test_metrics_tell_depths_states_and_times(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    for priority in ("high", "low", "low"):
        await submitted(client, priority=priority, user="ada-lovelace", metadata={"secret": "hidden"})
    await worker.finish(await worker.claim())
    await worker.claim()
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    found = {frozenset(key): value for key, value in values.items()}

    def value(*key: str) -> float | None:
        return found.get(frozenset(key))

    assert value("jarvis_queue_depth", "low", "generation:echo") == 1
    assert value("jarvis_queue_depth", "high", "generation:words") == 0
    assert value("jarvis_jobs", "in_progress", "generation:echo") == 1
    assert value("jarvis_jobs_total", "completed", "generation:echo") == 1
    assert value("jarvis_jobs_total", "queued", "generation:echo") == 3
    assert value("jarvis_wait_seconds_count", "generation:echo") == 2
    assert value("jarvis_wait_seconds_bucket", "generation:echo", "+Inf") == 2
    assert value("jarvis_run_seconds_count", "generation:echo") == 1
    assert value("jarvis_workers", "generation:echo") is not None
    assert "ada-lovelace" not in response.text
    assert "hidden" not in response.text


async def test_metrics_tell_what_a_workers_engine_counts(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    await submitted(client)
    figures = {"kv_cache_usage": 0.25, "draft_tokens": 10, "accepted_tokens": 7, "unknown": 1}
    about = {"id": "host-1-ab", "slots": 64, "takes": 12, "figures": figures}
    await worker.queue.renew("generation:echo", "host-1-ab", msgspec.json.encode(about), [])
    text = (await client.get("/metrics")).text
    labels = '{queue="generation:echo",worker="host-1-ab"}'
    told = {line for line in text.splitlines() if labels in line}
    assert told == {
        f"jarvis_worker_slots{labels} 12.0",
        f"jarvis_engine_kv_cache_usage_ratio{labels} 0.25",
        f"jarvis_engine_draft_tokens_total{labels} 10.0",
        f"jarvis_engine_accepted_tokens_total{labels} 7.0",
    }


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_browser_is_sent_to_the_description(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, follow_redirects=True)
    assert response.url.path == "/openapi.json"
    assert response.json()["info"]["title"] == "Jarvis"


async def test_every_answer_has_a_name_of_its_own(client: httpx.AsyncClient) -> None:
    names = {(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/nothing", "/v1/queues")}
    assert len(names) == 3
