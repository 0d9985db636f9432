"""A list of jobs in one request: all are checked before any is queued, and each has its own answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.errors import StoreUnavailable
from common.jobs import JobSpec
from common.queue import Queue
from producer import batch
from producer.answers import SubmittedListOut
from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import EMBEDDING, GENERATION
from tests.producer.worker import PlayedWorker

KEY = {"Idempotency-Key": '"a list"'}


def prompts(count: int) -> list[dict[str, Any]]:
    return [{**GENERATION, "input": {"prompt": f"Say {number}."}} for number in range(count)]


def bound(app: FastAPI, max_depth: int) -> None:
    app.state.edge.queue.settings = app.state.edge.settings.model_copy(update={"max_depth": max_depth})


async def depth(client: httpx.AsyncClient) -> int:
    data = (await client.get("/v1/queues")).json()["data"]
    return sum(sum(queue["depth"].values()) for queue in data)


@pytest.fixture
async def untouched(app: FastAPI) -> AsyncIterator[None]:
    """Afterwards Redis holds nothing."""
    yield
    assert await app.state.edge.queue.redis.keys("*") == []


async def test_a_list_is_accepted_in_its_order(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    response = await client.post("/v1/jobs", json=prompts(450))
    assert (response.status_code, response.headers["retry-after"]) == (202, "1")
    ids = [record["id"] for record in response.json()["data"]]
    assert len(set(ids)) == 450
    taken = [job for _ in range(9) for job in await worker.claim_many(50)]
    assert [job.id for job in taken] == ids
    assert [job.spec.input["prompt"] for job in taken] == [f"Say {number}." for number in range(450)]


async def test_an_entry_is_the_job_s_record(client: httpx.AsyncClient) -> None:
    more = {"priority": "high", "user": "ada", "metadata": {"order": "4711"}, "max_attempts": 5, "ttl_s": 60.5}
    later = {**GENERATION, "delay_s": 60}
    document = (await client.post("/v1/jobs", json=[{**GENERATION, **more}, EMBEDDING, later])).json()
    assert document["object"] == "list"
    assert SubmittedListOut.model_validate(document).model_dump(mode="json") == document
    for entry in document["data"]:
        record = (await client.get(entry["links"]["self"])).json()
        assert entry == {**record, "queue_position": None, "waiting_for": None, "waiting_code": None, "eta": None}


@pytest.mark.usefixtures("untouched")
async def test_one_wrong_job_and_nothing_is_queued(client: httpx.AsyncClient) -> None:
    jobs = [GENERATION, {**GENERATION, "n": 1, "model": 7}, {**GENERATION, "model": "nope"}, 5, EMBEDDING]
    problem = problem_of(await client.post("/v1/jobs", json=jobs))
    assert problem["status"] == 422
    assert [entry["field"] for entry in problem["errors"]] == ["[1].model", "[1].n", "[2].model", "[3]"]
    assert problem["errors"][2]["message"] == "allowed: echo, words, terse"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({**GENERATION, "ttl_s": 10, "delay_s": 20}, "[1].ttl_s"),
        ({"kind": "generation", "model": "words", "input": {"prompt": "é " * 16}}, "[1].input.prompt"),
        ({**GENERATION, "metadata": {f"k{n}": "" for n in range(5000)}}, "[1].metadata"),
        ({**GENERATION, "input": {"messages": [{"role": "god", "content": "x"}]}}, "[1].input.messages[0].role"),
        ({**GENERATION, "params": {"temperature": float("nan")}}, "[1].params.temperature"),
        ({**GENERATION, "input": {"prompt": "\ud800"}}, "[1].input.prompt"),
        ([GENERATION], "[1]"),
        (None, "[1]"),
    ],
)
async def test_what_is_wrong_with_a_member_is_named(client: httpx.AsyncClient, job: Any, field: str) -> None:
    body = json.dumps([GENERATION, job])
    response = await client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert problem_of(response)["field"] == field


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("count", [0, 1001])
async def test_a_list_has_1_to_1000_jobs(client: httpx.AsyncClient, count: int) -> None:
    problem = problem_of(await client.post("/v1/jobs", json=[{}] * count))
    assert (problem["status"], problem["field"], problem["value"]) == (422, "body", f"a list of {count}")


@pytest.mark.usefixtures("untouched")
async def test_a_thousand_wrong_jobs_make_a_short_answer(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json=[{"kind": "magic"}] * 1000)
    assert len(problem_of(response)["errors"]) == 20


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("headers", "field"), [({"Prefer": "wait=5"}, "Prefer"), ({"Accept": "text/event-stream"}, "Accept")]
)
async def test_a_list_is_not_waited_for(client: httpx.AsyncClient, headers: dict[str, str], field: str) -> None:
    response = await client.post("/v1/jobs", json=prompts(2), headers=headers)
    assert (response.status_code, problem_of(response)["field"]) == (400, field)


async def test_respond_async_is_what_a_list_does_anyway(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json=prompts(2), headers={"Prefer": "respond-async"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "respond-async")


async def test_what_a_full_queue_refuses_is_said_in_its_place(client: httpx.AsyncClient, app: FastAPI) -> None:
    bound(app, 2)
    response = await client.post("/v1/jobs", json=[*prompts(3), EMBEDDING, GENERATION])
    assert response.status_code == 202
    document = response.json()
    assert [entry["object"] for entry in document["data"]] == ["job", "job", "job.refused", "job", "job.refused"]
    refused = document["data"][2]
    assert (refused["status"], refused["index"]) == (429, 2)
    assert refused["error"]["type"].endswith("#quota-exceeded")
    assert int(response.headers["retry-after"]) > 1  # nobody works: nothing will be free in a second
    assert SubmittedListOut.model_validate(document)


async def test_a_list_of_which_nothing_is_accepted_is_a_429(client: httpx.AsyncClient, app: FastAPI) -> None:
    bound(app, 1)
    await client.post("/v1/jobs", json=GENERATION)
    response = await client.post("/v1/jobs", json=prompts(3))
    assert (response.status_code, problem_of(response)["title"]) == (429, "Queue Full")
    assert int(response.headers["retry-after"]) >= 1
    assert await depth(client) == 1


async def test_a_list_sent_again_with_its_key_is_the_same_jobs(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    first = await client.post("/v1/jobs", json=prompts(5), headers=KEY)
    await worker.finish(await worker.claim())
    again = await client.post("/v1/jobs", json=prompts(5), headers=KEY)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert [one["id"] for one in again.json()["data"]] == [one["id"] for one in first.json()["data"]]
    assert [one["status"] for one in again.json()["data"]] == ["completed"] + ["queued"] * 4
    assert await depth(client) == 4


async def test_sent_again_with_its_key_a_list_adds_what_was_refused(client: httpx.AsyncClient, app: FastAPI) -> None:
    bound(app, 2)
    first = (await client.post("/v1/jobs", json=prompts(4), headers=KEY)).json()["data"]
    bound(app, 100)
    again = await client.post("/v1/jobs", json=prompts(4), headers=KEY)
    ids = [one["id"] for one in again.json()["data"]]
    assert ids[:2] == [one["id"] for one in first[:2]]
    assert "idempotent-replayed" not in again.headers
    assert len(set(ids)) == await depth(client) == 4


async def test_another_list_with_the_key_is_refused_where_it_differs(client: httpx.AsyncClient) -> None:
    await client.post("/v1/jobs", json=prompts(3), headers=KEY)
    jobs = prompts(3)
    jobs[1] = EMBEDDING
    data = (await client.post("/v1/jobs", json=jobs, headers=KEY)).json()["data"]
    assert [entry.get("status") for entry in data] == ["queued", 422, "queued"]
    assert data[1]["error"]["field"] == "Idempotency-Key"
    assert await depth(client) == 3


async def test_a_key_of_a_list_is_no_key_of_a_single_job(client: httpx.AsyncClient) -> None:
    await client.post("/v1/jobs", json=prompts(1), headers=KEY)
    assert (await client.post("/v1/jobs", json=EMBEDDING, headers=KEY)).status_code == 202


async def test_when_redis_goes_away_half_way_the_accepted_ones_are_told(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: Queue = app.state.edge.queue
    submit_each, calls = queue.submit_each, 0

    async def once(specs: list[JobSpec], keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StoreUnavailable("ConnectionError")
        return await submit_each(specs, keys)

    monkeypatch.setattr(queue, "submit_each", once)
    response = await client.post("/v1/jobs", json=prompts(500))
    assert response.status_code == 202
    statuses = [entry["status"] for entry in response.json()["data"]]
    assert statuses == ["queued"] * 200 + [503] * 300
    assert await depth(client) == 200
    assert calls == 2  # whoever does not answer is not asked again for the rest


async def test_others_have_their_turn_while_a_long_list_is_checked(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "TURN_S", 0)
    turns, over = 0, False

    async def look() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    response = await client.post("/v1/jobs", json=[*prompts(300), {}])
    over = True
    await looking
    assert response.status_code == 422
    assert turns > 300
