"""Batches over HTTP, with a runner and a worker in this process: refusals, answers, ends."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.api_keys import ApiKeys, Asked
from common.blobs import Blobs
from common.jobs import ClaimedJob
from producer.__main__ import Server
from producer.batches.runner import Runner
from tests.producer.batching import (
    CHAT,
    Do,
    content,
    ended,
    jsonl,
    line,
    made,
    runner,
    runner_of,
    settings,
    upload,
    work,
)
from tests.producer.worker import PlayedWorker

__all__ = ["runner", "settings", "work"]  # fixtures


async def test_a_batch_is_answered_in_order_with_counts_and_stamps(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do]
) -> None:
    work["do"] = lambda job: "fail" if job.spec.input["messages"][0]["content"] == "number 3" else "finish"
    batch = await made(client, jsonl(*map(line, range(20))), metadata={"of": "tests"})
    assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "validating", {"of": "tests"})
    assert batch["expires_at"] - batch["created_at"] in (86_400, 86_401)
    over = await ended(client, batch["id"])
    assert over["status"] == "completed"
    assert over["request_counts"] == {"total": 20, "completed": 19, "failed": 1}
    assert over["model"] == "echo"
    assert all(over[f"{state}_at"] for state in ("in_progress", "finalizing", "completed"))
    assert not any(f"{state}_at" in over for state in ("failed", "expired", "cancelling", "cancelled"))
    output = await content(client, over["output_file_id"])
    good = [number for number in range(20) if number != 3]
    assert [one["custom_id"] for one in output] == [f"line-{number}" for number in good]
    assert [one["response"]["body"]["choices"][0]["message"]["content"] for one in output] == [
        f"number {number}" for number in good
    ]
    assert all(one["error"] is None and one["response"]["status_code"] == 200 for one in output)
    [failed] = await content(client, over["error_file_id"])
    assert failed["custom_id"] == "line-3"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "invalid_request"
    job = (await client.get(f"/v1/jobs/{output[0]['response']['request_id']}")).json()
    assert (job["priority"], job["user"]) == ("low", batch["id"])
    listed = (await client.get("/v1/batches")).json()["data"]
    assert [one["id"] for one in listed] == [batch["id"]]


async def test_a_batch_never_has_more_jobs_in_the_queue_than_it_may(
    client: httpx.AsyncClient, runner: Runner, app: FastAPI
) -> None:
    batch = await made(client, jsonl(*map(line, range(40))))
    edge = app.state.edge
    async with asyncio.timeout(5):
        while not (stats := await edge.results.queues()) or stats[0].depth["low"] < 8:
            assert not stats or stats[0].depth["low"] <= 8
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)  # long enough for two more looks of the runner: nothing more must come
    assert (await edge.results.queues())[0].depth == {"high": 0, "normal": 0, "low": 8}
    await client.post(f"/v1/batches/{batch['id']}/cancel")
    await ended(client, batch["id"])


async def test_batches_of_a_process_share_what_it_may_have_in_the_queue(
    client: httpx.AsyncClient, runner: Runner, app: FastAPI
) -> None:
    batches = [await made(client, jsonl(*map(line, range(20)))) for _ in range(2)]
    edge = app.state.edge
    worker = PlayedWorker(edge.queue, "generation:echo")
    users: list[str] = []
    async with asyncio.timeout(10):
        while len(users) < 24:
            stats = await edge.results.queues()
            assert not stats or stats[0].depth["low"] <= 8 + 4  # until the second came, the first had the share of both
            job = await worker.next()
            users.append(job.user)
            await worker.finish(job)
    assert min(users.count(batch["id"]) for batch in batches) >= 6
    for batch in batches:
        await client.post(f"/v1/batches/{batch['id']}/cancel")
        await ended(client, batch["id"])


WRONG = [
    (b"no json\n", "invalid_json_line", None, 1),
    (jsonl(line(0), line(0)), "duplicate_custom_id", "custom_id", 2),
    (jsonl(line(0), line(1, url="/v1/embeddings")), "url_mismatch", "url", 2),
    (jsonl(line(0, method="GET")), "invalid_method", "method", 1),
    (jsonl(line(0, custom_id="")), "invalid_custom_id", "custom_id", 1),
    (jsonl(line(0, custom_id=None)), "missing_required_parameter", "custom_id", 1),
    (jsonl(line(0, colour="red")), "unknown_parameter", "colour", 1),
    (jsonl(line(0, body=[])), "invalid_type", "body", 1),
    (
        jsonl(line(0), line(1, body={"model": "gpt-5", "messages": [{"role": "user", "content": "x"}]})),
        "model_not_found",
        "body.model",
        2,
    ),
    (jsonl(line(0, body=line(0)["body"] | {"temperature": 9})), "invalid_request", "body.temperature", 1),
    (jsonl(line(0, body=line(0)["body"] | {"stream": True})), "invalid_request", "body.stream", 1),
    (b"\n\n", "empty_file", "input_file_id", None),
    (jsonl(*map(line, range(501))), "too_many_tasks", None, 501),
    (b'{"custom_id": "' + b"x" * 150_000, "line_too_long", None, None),
]


@pytest.mark.parametrize(("given", "code", "param", "number"), WRONG, ids=[one[1] for one in WRONG])
async def test_a_wrong_line_fails_the_batch_and_is_named(
    client: httpx.AsyncClient, runner: Runner, given: bytes, code: str, param: str | None, number: int | None
) -> None:
    over = await ended(client, (await made(client, given))["id"])
    assert (over["status"], over.get("output_file_id"), over.get("error_file_id")) == ("failed", None, None)
    assert over["failed_at"]
    first = over["errors"]["data"][0]
    assert (first["code"], first["param"], first["line"]) == (code, param, number)
    assert first["message"]
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_every_wrong_line_is_named_up_to_a_hundred(client: httpx.AsyncClient, runner: Runner) -> None:
    lines = [line(number, method="PUT") for number in range(150)]
    over = await ended(client, (await made(client, jsonl(*lines)))["id"])
    assert [error["line"] for error in over["errors"]["data"]] == list(range(1, 101))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1y"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_batch_that_is_not_acceptable_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    file = (await upload(client, jsonl(line(0)))).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    answer = await client.post("/v1/batches", json=body | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_batch_needs_a_file_for_batches(client: httpx.AsyncClient) -> None:
    other = (await upload(client, jsonl(line(0)), purpose="user_data")).json()
    body = {"input_file_id": other["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert (await client.post("/v1/batches", json=body)).status_code == 400
    body["input_file_id"] = "file-00000000000000000000aa"
    assert (await client.post("/v1/batches", json=body)).status_code == 404
    for path in ("batch_nonsense", "batch_" + "0" * 22):
        assert (await client.get(f"/v1/batches/{path}")).status_code == 404
        assert (await client.post(f"/v1/batches/{path}/cancel")).status_code == 404


async def test_one_idempotency_key_is_one_batch(client: httpx.AsyncClient) -> None:
    file = (await upload(client, jsonl(line(0)))).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    key = {"Idempotency-Key": "monday"}
    answers = await asyncio.gather(*(client.post("/v1/batches", json=body, headers=key) for _ in range(10)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert (await client.post("/v1/batches", json=body | {"metadata": {"a": "b"}}, headers=key)).status_code == 422


async def test_a_cancelled_batch_keeps_what_was_done(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do]
) -> None:
    done = asyncio.Event()
    seen: list[str] = []

    def first_five(job: ClaimedJob) -> str:
        seen.append(job.id)
        if len(seen) > 5:
            done.set()
            return "leave"
        return "finish"

    work["do"] = first_five
    batch = await made(client, jsonl(*map(line, range(20))))
    await asyncio.wait_for(done.wait(), 5)
    asked = (await client.post(f"/v1/batches/{batch['id']}/cancel")).json()
    assert asked["status"] == "cancelling"
    over = await ended(client, batch["id"])
    assert over["status"] == "cancelled"
    assert over["cancelling_at"]
    assert over["cancelled_at"]
    assert over["request_counts"] == {"total": 20, "completed": 5, "failed": 15}
    output = await content(client, over["output_file_id"])
    errors = await content(client, over["error_file_id"])
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert sorted(one["custom_id"] for one in output + errors) == sorted(f"line-{number}" for number in range(20))
    assert (await client.post(f"/v1/batches/{batch['id']}/cancel")).json() == over


async def test_a_batch_whose_window_ends_expires_with_what_was_done(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do]
) -> None:
    work["do"] = lambda job: "finish" if job.spec.input["messages"][0]["content"] == "number 0" else "leave"
    over = await ended(client, (await made(client, jsonl(*map(line, range(10))), completion_window="2s"))["id"])
    assert over["status"] == "expired"
    assert over["expired_at"] >= over["expires_at"]
    assert over["request_counts"] == {"total": 10, "completed": 1, "failed": 9}
    errors = await content(client, over["error_file_id"])
    assert [one["error"]["code"] for one in errors] == ["batch_expired"] * 9


async def test_who_takes_a_batch_over_finishes_the_lines_that_were_left_behind(
    client: httpx.AsyncClient, app: FastAPI, work: dict[str, Do]
) -> None:
    held: list[ClaimedJob] = []

    def all_but_the_first(job: ClaimedJob) -> str:
        if job.spec.input["messages"][0]["content"] != "number 0":
            return "finish"
        held.append(job)
        return "leave"

    work["do"] = all_but_the_first
    async with runner_of(app), asyncio.timeout(10):
        batch = await made(client, jsonl(*map(line, range(20))))
        while (await client.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]["completed"] < 19:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    worker = PlayedWorker(app.state.edge.queue, "generation:echo")
    worker.last_seq = {held[0].id: held[0].seq}
    await worker.finish(held[0], {"text": "at last", "finish_reason": "stop"})
    async with runner_of(app):
        over = await ended(client, batch["id"])
    output = await content(client, over["output_file_id"])
    assert [one["custom_id"] for one in output] == [f"line-{number}" for number in range(20)]
    assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == "at last"


async def test_an_input_file_that_is_deleted_stays_readable_for_its_batch_and_goes_with_it(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    batch = await made(client, jsonl(line(0, method="GET")))
    edge = app.state.edge
    blob = (await edge.batches.get(batch["id"])).asked.blob
    await client.delete(f"/v1/files/{batch['input_file_id']}")
    assert await edge.files.blobs.length(blob)
    async with runner_of(app):
        assert (await ended(client, batch["id"]))["errors"]["data"][0]["code"] == "invalid_method"
        await until_gone(edge.files.blobs, blob)


async def until_gone(blobs: Blobs, blob: str, deadline_s: float = 5) -> None:
    """Wait until a blob is not there any more."""
    async with asyncio.timeout(deadline_s):
        with suppress(FileNotFoundError):
            while await blobs.length(blob):  # noqa: ASYNC110 - the runner removes it
                await asyncio.sleep(0.02)


async def test_the_events_of_a_batch_end_with_its_end(live: httpx.AsyncClient, server: Server) -> None:
    async with runner_of(server.web):
        batch = await made(live, b"no json\n")
        events = (await live.get(f"/v1/batches/{batch['id']}/events")).text
    last = [text for text in events.split("\n\n") if text.startswith("id: ")][-1].split("\n")
    assert last[1] == "event: batch"
    assert json.loads(last[2].removeprefix("data: "))["status"] == "failed"
    again = await live.get(f"/v1/batches/{batch['id']}/events", headers={"Last-Event-ID": last[0][4:]})
    assert again.status_code == 204


async def test_a_recording_is_transcribed_by_its_file(client: httpx.AsyncClient, runner: Runner, app: FastAPI) -> None:
    ears = PlayedWorker(app.state.edge.queue, "transcription:ears")
    spoken = (await upload(client, b"RIFF of a kind", purpose="user_data")).json()
    url = "/v1/audio/transcriptions"
    lines = [line(0, url=url, body={"model": "ears", "file_id": spoken["id"]})]
    lines.append(line(1, url=url, body={"model": "ears", "file_id": spoken["id"], "response_format": "text"}))
    batch = await made(client, jsonl(*lines), endpoint=url)
    for text in ("hello", "again"):
        job = await asyncio.wait_for(ears.next(), 5)
        audio = job.spec.input["audio"]
        assert await app.state.edge.queue.blobs.load(audio.encode()) == b"RIFF of a kind"
        await ears.finish(job, {"text": text})
    over = await ended(client, batch["id"])
    output = await content(client, over["output_file_id"])
    assert [one["response"]["body"] for one in output] == [
        {"text": "hello", "usage": {"type": "duration", "seconds": 0}},
        "again\n",
    ]


async def test_nothing_of_a_batch_is_left_in_redis_but_its_record_and_files(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do], app: FastAPI
) -> None:
    over = await ended(client, (await made(client, jsonl(*map(line, range(20)))))["id"])
    prefix = "jarvis:{00}:"
    redis = app.state.edge.queue.redis
    assert await redis.exists(f"{prefix}batch:{over['id']}:parts") == 0
    assert await redis.zcard(f"{prefix}batches:due") == 0
    record = await redis.hkeys(f"{prefix}batch:{over['id']}")
    assert not {b"owner", b"plan", b"live", b"claims"} & set(record)
    assert 0 < await redis.pttl(f"{prefix}batch:{over['id']}") <= 30 * 86_400_000
    jobs = (await client.get("/v1/jobs?limit=100")).json()["data"]
    left = [await redis.pttl(f"{prefix}job:{job['id']}") for job in jobs]
    assert max(left) <= app.state.settings.retention_s * 1000


# -- limits


async def keyed(app: FastAPI, client: httpx.AsyncClient, *limits: str) -> None:
    """From now on the client calls with a key that has these limits."""
    keys = ApiKeys(app.state.edge.queue.redis, app.state.settings)
    made = await keys.create(Asked(name="ann", tier="custom", limits=limits), "test")
    assert made
    client.headers["Authorization"] = f"Bearer {made[1].text}"


async def test_lines_over_their_keys_limits_wait_and_one_that_never_fits_is_refused(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do], app: FastAPI
) -> None:
    await keyed(app, client, "requests=20/1s,burst=3", "tokens=2000/1s,burst=500")
    lines = [line(number) for number in range(12)]
    lines[3]["body"]["max_tokens"] = 900
    over = await ended(client, (await made(client, jsonl(*lines)))["id"])
    assert over["request_counts"] == {"total": 12, "completed": 11, "failed": 1}
    [refused] = await content(client, over["error_file_id"])
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("line-3", 429)
    assert refused["response"]["body"]["error"]["code"] == "insufficient_quota"
    (stats,) = [one for one in await app.state.edge.results.queues() if one.queue == "generation:echo"]
    assert stats.counts["limited:requests-1s"] > 0
    assert stats.counts["state:completed"] == 11


async def test_a_recording_that_a_line_names_counts_by_its_header(
    client: httpx.AsyncClient, runner: Runner, app: FastAPI
) -> None:
    await keyed(app, client, "audio_seconds=60/1h")
    spoken = (
        await upload(client, b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x00" * 8000, purpose="user_data")
    ).json()
    url = "/v1/audio/transcriptions"
    await made(client, jsonl(line(0, url=url, body={"model": "ears", "file_id": spoken["id"]})), endpoint=url)
    job = await asyncio.wait_for(PlayedWorker(app.state.edge.queue, "transcription:ears").next(), 5)
    ticket = await app.state.edge.queue.redis.hget(f"jarvis:{{00}}:job:{job.id}", "ticket")
    assert " l2," in ticket.decode()  # 32,000 bytes at 128 kbit/s


# -- webhooks


async def test_the_end_of_a_batch_is_told_once_and_its_lines_are_not(
    client: httpx.AsyncClient, runner: Runner, work: dict[str, Do]
) -> None:
    endpoint = {"url": "https://example.org/", "event_types": ["*"], "user": "ann"}
    assert (await client.post("/v1/webhook_endpoints", json=endpoint)).status_code == 200
    hook = {"url": "https://example.org/own", "events": ["batch.completed"]}
    batch = await made(client, jsonl(*map(line, range(5))), user="ann", webhook=hook)
    assert (await ended(client, batch["id"]))["status"] == "completed"
    told = (await client.get("/v1/webhook_deliveries")).json()["data"]
    assert [(one["type"], one["subject"], one["job"]) for one in told] == [("batch.completed", batch["id"], None)] * 2
    assert {one["event"] for one in told} == {f"evt_00{batch['id'].removeprefix('batch_')}"}


async def test_a_batch_that_fails_tells_the_endpoints_of_its_user(client: httpx.AsyncClient, runner: Runner) -> None:
    endpoint = {"url": "https://example.org/", "event_types": ["batch.failed"]}
    await client.post("/v1/webhook_endpoints", json=endpoint)
    batch = await made(client, b"nonsense", webhook={"url": "https://example.org/", "events": ["batch.expired"]})
    assert (await ended(client, batch["id"]))["status"] == "failed"
    (told,) = (await client.get("/v1/webhook_deliveries")).json()["data"]
    assert (told["type"], told["subject"], told["user"]) == ("batch.failed", batch["id"], "anonymous")


async def test_a_batchs_webhook_is_checked_as_any_other(client: httpx.AsyncClient) -> None:
    file = (await upload(client, jsonl(line(0)))).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    for webhook, param in (
        ({"url": "https://10.0.0.1/"}, "webhook.url"),
        ({"url": "https://example.org/", "events": ["job.completed"]}, "webhook.events"),
        ({"url": "https://example.org/", "payload": "full"}, "webhook.payload"),
    ):
        answer = await client.post("/v1/batches", json={**body, "webhook": webhook})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_metrics_tell_how_many_batches_are_in_each_state(client: httpx.AsyncClient) -> None:
    for number in range(3):
        batch = await made(client, jsonl(line(number)))
    await client.post(f"/v1/batches/{batch['id']}/cancel")
    text = (await client.get("/metrics")).text
    assert {row for row in text.splitlines() if row.startswith("jarvis_batches{")} == {
        'jarvis_batches{state="validating"} 2.0',
        'jarvis_batches{state="in_progress"} 0.0',
        'jarvis_batches{state="finalizing"} 0.0',
        'jarvis_batches{state="cancelling"} 1.0',
    }
