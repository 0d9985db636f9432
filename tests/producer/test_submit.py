"""What a submit accepts, and what it makes of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.jobs import JobRecord
from producer.answers import JobOut
from tests.producer.worker import PlayedWorker, until

GENERATION: dict[str, Any] = {"kind": "generation", "model": "echo", "input": {"prompt": "Say it."}}
EMBEDDING: dict[str, Any] = {"kind": "embedding", "model": "vectors", "input": {"texts": ["one", "two"]}}
RECORD = (
    "id object kind model status priority user created_at started_at finished_at expires_at attempts claims"
    " queue_position waiting_for error usage metrics metadata links"
).split()


async def test_a_job_is_accepted_with_202_its_address_and_its_record(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json=GENERATION)
    record = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{record['id']}" == record["links"]["self"]
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"].startswith("req_")
    assert set(RECORD) <= set(record)
    assert (record["status"], record["queue_position"]) == ("queued", 1)
    assert record["waiting_for"] == "a worker: none is running for this model"
    assert set(record["metrics"]) == {"queue_ms", "run_ms", "gpu_ms"}
    assert set(record["links"]) == {"self", "result", "events", "cancel"}


async def test_the_worker_gets_what_was_asked_for(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    params = {"max_tokens": 64, "temperature": 0, "stop": ["\n"], "seed": None}
    await client.post("/v1/jobs", json={**GENERATION, "params": params, "user": "ada", "timeout_s": 7})
    job = await worker.claim()
    assert job.spec.input == {"prompt": "Say it."}
    assert job.spec.params == {"max_tokens": 64, "temperature": 0, "stop": ["\n"]}
    assert (job.user, job.timeout_s) == ("ada", 7)


async def test_a_conversation_is_accepted(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Höre: 你好 \u0000 😀"}]
    response = await client.post("/v1/jobs", json={**GENERATION, "input": {"messages": messages}})
    assert response.status_code == 202
    assert (await worker.claim()).spec.input == {"messages": messages}


@pytest.mark.parametrize(
    "params",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
        {"response_format": {"type": "text"}, "regex": "[ab]{1,3}"},
        {"choice": ["yes", "no"], "n": 8, "temperature": 1},
        {"grammar": 'root ::= "a"', "logprobs": True, "top_logprobs": 20},
        {"response_format": {"type": "json_object"}, "logprobs": True},
    ],
)
async def test_what_an_answer_must_be_reaches_the_worker_as_it_was_asked(
    client: httpx.AsyncClient, worker: PlayedWorker, params: dict[str, Any]
) -> None:
    response = await client.post("/v1/jobs", json={**GENERATION, "params": params})
    assert response.status_code == 202, response.text
    assert (await worker.claim()).spec.params == params


async def test_a_conversation_with_a_tools_answer_is_accepted(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "1 + 1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    response = await client.post("/v1/jobs", json={**GENERATION, "input": {"messages": messages}})
    assert response.status_code == 202, response.text
    assert (await worker.claim()).spec.input == {"messages": messages}


async def test_an_embedding_is_accepted(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    assert (await client.post("/v1/jobs", json={**EMBEDDING, "params": {"normalize": True}})).status_code == 202
    job = await PlayedWorker(worker.queue, "embedding:vectors").claim()
    assert job.spec.input == {"texts": ["one", "two"]}


async def test_the_widest_allowed_values_are_accepted(client: httpx.AsyncClient) -> None:
    params = {
        "max_tokens": 1000, "temperature": 2, "top_p": 1, "top_k": -1, "min_p": 1, "presence_penalty": -2,
        "frequency_penalty": 2.0, "repetition_penalty": 2, "seed": 2**63 - 1, "stop": ["x" * 64] * 4,
    }  # fmt: skip
    rest = {
        "user": "a" * 64, "metadata": {f"{i:064}": "v" * 512 for i in range(16)}, "delay_s": 30 * 86_400,
        "timeout_s": 86_400, "max_attempts": 20, "priority": "low",
    }  # fmt: skip
    response = await client.post("/v1/jobs", json={**GENERATION, "params": params, **rest})
    assert response.status_code == 202, response.text
    texts = {"texts": ["x"] * 2047 + ["y" * 32_768]}
    response = await client.post("/v1/jobs", json={**EMBEDDING, "input": texts})
    assert response.status_code == 202, response.text


async def test_null_is_the_same_as_leaving_a_field_out(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    nulls = dict.fromkeys(["params", "metadata", "delay_s", "run_at", "ttl_s", "timeout_s", "max_attempts"])
    response = await client.post("/v1/jobs", json={**GENERATION, "input": {"prompt": "x", "messages": None}, **nulls})
    assert response.status_code == 202, response.text
    assert (await worker.claim()).spec.input == {"prompt": "x"}


async def test_metadata_priority_and_user_come_back(client: httpx.AsyncClient) -> None:
    sent = {"metadata": {"order": "4711"}, "priority": "high", "user": "ada@example.org"}
    record = (await client.post("/v1/jobs", json={**GENERATION, **sent})).json()
    assert {name: record[name] for name in sent} == sent


@pytest.mark.parametrize("start", [{"delay_s": 60}, {"run_at": "in a minute"}, {"run_at": "as a number"}])
async def test_a_job_can_start_later(client: httpx.AsyncClient, start: dict[str, Any]) -> None:
    at = time.time() + 60
    if "run_at" in start:
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        start = {"run_at": at if start["run_at"] == "as a number" else text}
    record = (await client.post("/v1/jobs", json={**GENERATION, **start})).json()
    assert record["status"] == "scheduled"
    assert abs(record["run_at"] - at) < 2
    assert record["waiting_for"].startswith("its time")


async def test_a_long_delay_does_not_outlive_the_job(client: httpx.AsyncClient) -> None:
    record = (await client.post("/v1/jobs", json={**GENERATION, "delay_s": 7 * 86_400})).json()
    assert record["expires_at"] - record["run_at"] > 86_000
    at = time.time() + 9 * 86_400
    record = (await client.post("/v1/jobs", json={**GENERATION, "run_at": at})).json()
    assert record["expires_at"] - record["run_at"] > 86_000


async def test_a_moment_in_the_past_is_now(client: httpx.AsyncClient) -> None:
    record = (await client.post("/v1/jobs", json={**GENERATION, "run_at": "2020-01-01T00:00:00+02:00"})).json()
    assert record["status"] == "queued"


async def test_a_prompt_that_just_fits_is_accepted(client: httpx.AsyncClient) -> None:
    fits = {"kind": "generation", "model": "words", "input": {"prompt": "é " * 10}, "params": {"max_tokens": 6}}
    assert (await client.post("/v1/jobs", json=fits)).status_code == 202
    talk = {"messages": [{"role": "user", "content": "é " * 7}, {"role": "assistant", "content": "é " * 8}]}
    assert (await client.post("/v1/jobs", json={**fits, "input": talk, "params": {}})).status_code == 202


async def test_a_full_queue_answers_429_and_says_when_to_come_back(client: httpx.AsyncClient, app: Any) -> None:
    app.state.edge.queue.settings = app.state.edge.settings.model_copy(update={"max_depth": 1})
    assert (await client.post("/v1/jobs", json=GENERATION)).status_code == 202
    response = await client.post("/v1/jobs", json=GENERATION)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) >= 1000
    assert response.headers["x-should-retry"] == "true"
    assert response.json()["type"].endswith("#quota-exceeded")


async def test_in_a_deep_queue_the_place_is_left_to_be_asked_for(client: httpx.AsyncClient) -> None:
    records = [(await client.post("/v1/jobs", json=GENERATION)).json() for _ in range(60)]
    assert [record["queue_position"] for record in records[:51]] == list(range(1, 52))
    assert None in [record["queue_position"] for record in records[51:]]
    last = (await client.get(records[-1]["links"]["self"])).json()
    assert last["queue_position"] == 60
    assert last["waiting_for"]


async def test_while_a_place_is_counted_others_do_not_wait_for_theirs(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, asked = asyncio.Event(), 0
    record = app.state.edge.results.record

    async def slowly(job_id: str) -> JobRecord:
        nonlocal asked
        asked += 1
        await counted.wait()
        found: JobRecord = await record(job_id)
        return found

    monkeypatch.setattr(app.state.edge.results, "record", slowly)
    first = asyncio.create_task(client.post("/v1/jobs", json=GENERATION))
    await until(lambda: asked)
    others = [(await client.post("/v1/jobs", json=GENERATION)).json() for _ in range(10)]
    assert [(other["status"], other["queue_position"]) for other in others] == [("queued", None)] * 10
    counted.set()
    assert (await first).json()["queue_position"] == 1
    assert asked == 1
    assert (await client.post("/v1/jobs", json=GENERATION)).json()["queue_position"] == 12


async def test_the_answer_is_the_record_as_anyone_reads_it(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    more = {"user": "ada", "priority": "low", "metadata": {"order": "4711"}, "max_attempts": 5, "ttl_s": 60.25}
    all_changes: list[dict[str, Any]] = [{}, more, {"delay_s": 60}, {"user": "bob"}]
    for changes in all_changes:
        record = (await client.post("/v1/jobs", json={**GENERATION, **changes})).json()
        assert record == (await client.get(record["links"]["self"])).json()
    await worker.claim_many(10)
    for _ in range(2):  # what the first in line waits for is asked once, and known for the next
        record = (await client.post("/v1/jobs", json=EMBEDDING)).json()
        assert record == (await client.get(record["links"]["self"])).json()
        await PlayedWorker(worker.queue, "embedding:vectors").claim()


async def test_what_the_first_in_line_waits_for_is_asked_once_a_second(
    client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    record = app.state.edge.results.record

    async def counted(job_id: str) -> JobRecord:
        asked.append(job_id)
        found: JobRecord = await record(job_id)
        return found

    monkeypatch.setattr(app.state.edge.results, "record", counted)
    for _ in range(5):
        answer = (await client.post("/v1/jobs", json=GENERATION)).json()
        assert answer["queue_position"] == 1
        assert answer["waiting_for"]
        await worker.claim()
    assert len(asked) == 1


async def test_the_documented_record_is_the_one_that_is_sent(client: httpx.AsyncClient) -> None:
    record = (await client.post("/v1/jobs", json=GENERATION)).json()
    assert JobOut.model_validate(record).model_dump(mode="json") == record
