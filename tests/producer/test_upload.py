"""Recordings on their way in: from a form or from JSON to the blob store, and never to Redis."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from common.jobs import ClaimedJob
from common.settings import Settings
from ops.cli import app as jarvis
from producer.__main__ import Server
from producer.app import create_app
from tests.producer.test_refusals import problem_of as problem
from tests.producer.worker import PlayedWorker

SOUND = bytes(range(256)) * 1000  # more than a JSON body may have here
JOB: dict[str, Any] = {"kind": "transcription", "model": "ears"}


@pytest.fixture
async def worker(app: FastAPI) -> PlayedWorker:
    """A worker of the model `ears`."""
    return PlayedWorker(app.state.edge.queue, "transcription:ears")


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return problem(response)


def form(sound: bytes = SOUND, **job: Any) -> dict[str, Any]:
    return {"job": (None, json.dumps(JOB | job), "application/json"), "file": ("a.wav", sound, "audio/wav")}


def inline(sound: bytes = b"RIFF", **job: Any) -> dict[str, Any]:
    return {**JOB, "input": {"audio": base64.b64encode(sound).decode()}, **job}


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "blobs").rglob("*") if path.is_file()]


async def recording_of(app: FastAPI, job: ClaimedJob) -> bytes:
    audio = job.spec.input["audio"]
    assert audio.startswith("@")
    data: bytes = await app.state.edge.queue.blobs.load(audio.encode())
    return data


async def test_a_file_larger_than_a_body_is_accepted_and_lies_in_the_blob_store(
    client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker, tmp_path: Path
) -> None:
    params = {"language": "de", "response_format": "verbose_json", "timestamp_granularities": ["word"]}
    response = await client.post("/v1/jobs", files=form(params=params, priority="high", metadata={"a": "b"}))
    assert response.status_code == 202, response.text
    assert (response.json()["kind"], response.json()["metadata"]) == ("transcription", {"a": "b"})
    job = await worker.claim()
    assert (job.lane, job.spec.params) == ("high", params)
    assert await recording_of(app, job) == SOUND
    assert kept(tmp_path) == [SOUND]
    assert len(job.raw) < 300, "of the recording, Redis has a reference"


async def test_a_short_one_comes_as_base64(client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker) -> None:
    response = await client.post("/v1/jobs", json=inline(b"RIFF\x00\x01"))
    assert response.status_code == 202, response.text
    assert await recording_of(app, await worker.claim()) == b"RIFF\x00\x01"


async def test_recordings_come_in_lists_too(client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker) -> None:
    response = await client.post("/v1/jobs", json=[inline(b"one"), inline(b"two")])
    assert response.status_code == 202, response.text
    jobs = await worker.claim_many(2)
    assert [await recording_of(app, job) for job in jobs] == [b"one", b"two"]


async def test_the_same_key_and_recording_is_the_same_job_and_is_stored_once(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    key = {"Idempotency-Key": "once"}
    answers = [await client.post("/v1/jobs", files=form(), headers=key) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert kept(tmp_path) == [SOUND]
    other = await client.post("/v1/jobs", files=form(SOUND + b"!"), headers=key)
    assert problem_of(other, 422)["field"] == "Idempotency-Key"
    assert kept(tmp_path) == [SOUND], "what is not accepted is not kept"


async def test_base64_and_a_form_of_the_same_recording_are_the_same_request(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    one = await client.post("/v1/jobs", files=form(b"sound"), headers=key)
    two = await client.post("/v1/jobs", json=inline(b"sound"), headers=key)
    assert one.json()["id"] == two.json()["id"]


async def test_a_retry_has_the_recording_for_as_long_as_it_may_live(
    client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker, tmp_path: Path
) -> None:
    first = (await client.post("/v1/jobs", files=form(ttl_s=3600))).json()["id"]
    await worker.fail(await worker.claim())
    again = await client.post(f"/v1/jobs/{first}/retry")
    assert again.status_code == 202, again.text
    job = await worker.claim()
    assert await recording_of(app, job) == SOUND
    hours = [int(path.name) for path in (tmp_path / "blobs").iterdir()]
    assert int(job.spec.input["audio"][1:].split("/")[0]) == max(hours) > min(hours)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (JOB | {"input": {}}, "input.audio"),
        (JOB | {"input": {"audio": ""}}, "input.audio"),
        (JOB | {"input": {"audio": "not base64!"}}, "input.audio"),
        (JOB | {"input": {"audio": "@123/abc"}}, "input.audio"),
        (JOB | {"input": {"audio": 7}}, "input.audio"),
        (JOB | {"input": {"url": "http://127.0.0.1/a.wav"}}, "input.url"),
        (JOB, "input"),
        (inline(params={"language": "klingon"}), "params.language"),
        (inline(params={"task": "sing"}), "params.task"),
        (inline(params={"temperature": 1.5}), "params.temperature"),
        (inline(params={"response_format": "docx"}), "params.response_format"),
        (inline(params={"timestamp_granularities": ["word"]}), "params.timestamp_granularities"),
        (
            inline(params={"response_format": "srt", "timestamp_granularities": ["word"]}),
            "params.timestamp_granularities",
        ),
        (
            inline(params={"response_format": "verbose_json", "timestamp_granularities": ["syllable"]}),
            "params.timestamp_granularities[0]",
        ),
        (inline(params={"prompt": "a" * 5000}), "params.prompt"),
        (inline(params={"vad": "yes"}), "params.vad"),
        (inline(params={"max_tokens": 5}), "params.max_tokens"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, tmp_path: Path, body: Any, field: str) -> None:
    assert problem_of(await client.post("/v1/jobs", json=body), 422)["field"] == field
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "status", "field"),
    [
        ({"file": form()["file"]}, 400, "body"),
        ({"job": form()["job"]}, 422, "file"),
        ({**form(), "more": (None, "x")}, 422, "more"),
        ([*form().items(), ("file", ("b.wav", b"x"))], 422, "body"),
        ({**form(), "file": (None, "text")}, 422, "file"),
        (form(b""), 422, "file"),
        (form(input={"audio": "UklGRg=="}), 422, "input.audio"),
        (form(input={"sound": 1}), 422, "input.sound"),
        (form(params={"task": "sing"}), 422, "params.task"),
        (form(model="nope"), 404, "model"),
        (form(kind="generation", model="echo", input={"prompt": "a"}), 422, "file"),
        ({**form(), "job": (None, "{", "application/json")}, 400, "body"),
        ({**form(), "job": (None, "[]", "application/json")}, 422, "body"),
    ],
)
async def test_a_wrong_form_is_refused_in_words(
    client: httpx.AsyncClient, tmp_path: Path, files: Any, status: int, field: str
) -> None:
    assert problem_of(await client.post("/v1/jobs", files=files), status)["field"] == field
    assert kept(tmp_path) == []


async def test_a_form_that_is_no_form_is_refused(client: httpx.AsyncClient) -> None:
    for declared in ("multipart/form-data", "multipart/form-data; boundary=x"):
        response = await client.post("/v1/jobs", content=b"--y\r\nhello", headers={"content-type": declared})
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_recording_that_is_too_large_is_refused_with_and_without_a_length(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    too_much = bytes(settings.max_audio_bytes + settings.max_body_bytes + 1)
    assert problem_of(await client.post("/v1/jobs", files=form(too_much)), 413)["field"] == "body"
    request = client.build_request("POST", "/v1/jobs", files=form(too_much))
    body = request.read()

    async def unknown_length() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"content-type": request.headers["content-type"]}
    answer = await client.post("/v1/jobs", content=unknown_length(), headers=headers)
    assert problem_of(answer, 413)["field"] == "body"
    assert kept(tmp_path) == []


async def test_a_recording_a_little_too_large_is_refused_though_the_form_would_fit(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    answer = await client.post("/v1/jobs", files=form(bytes(settings.max_audio_bytes + 1)))
    assert problem_of(answer, 413)["field"] == "file"
    assert kept(tmp_path) == []


async def test_a_page_of_another_site_cannot_post_a_form(client: httpx.AsyncClient) -> None:
    foreign = await client.post("/v1/jobs", files=form(), headers={"origin": "https://elsewhere.example"})
    assert problem_of(foreign, 403)["field"] == "Origin"
    own = await client.post("/v1/jobs", files=form(), headers={"origin": "http://test"})
    assert own.status_code == 202, own.text


async def test_a_full_queue_keeps_no_recording(settings: Settings, tmp_path: Path) -> None:
    app = create_app(settings.model_copy(update={"max_depth": 1}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        statuses = [(await client.post("/v1/jobs", files=form())).status_code for _ in range(2)]
    assert statuses == [202, 429]
    assert kept(tmp_path) == [SOUND]


async def test_the_command_line_uploads_a_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(SOUND)
    port = server.servers[0].sockets[0].getsockname()[1]
    command = ["transcribe", str(path), "--model", "ears", "--format", "srt", "--language", "de", "--priority", "high"]
    done = await asyncio.to_thread(CliRunner().invoke, jarvis, [*command, "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 0, done.output
    worker = PlayedWorker(server.web.state.edge.queue, "transcription:ears")
    job = await worker.claim()
    assert done.stdout.strip() == job.id
    assert (job.lane, job.spec.params) == ("high", {"language": "de", "response_format": "srt"})
    assert await recording_of(server.web, job) == SOUND
