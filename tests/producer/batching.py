"""Batches in a test's process: their runner, a worker of their lines, and short words for what callers do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.jobs import ClaimedJob
from common.settings import Settings
from producer.batches.endpoints import Here
from producer.batches.runner import Runner
from producer.batches.stretches import Tools
from tests.producer.worker import PlayedWorker

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Small stretches, so that a few lines are several; and clocks that a test can wait for."""
    small = {"batch_jobs": 8, "lease_s": 2, "bell_timeout_s": 0.5, "max_file_bytes": 300_000, "max_batch_lines": 500}
    return settings.model_copy(update=small)


@asynccontextmanager
async def runner_of(app: FastAPI) -> AsyncIterator[Runner]:
    """What `python -m producer.batches` runs, in this process."""
    edge = app.state.edge
    tools = Tools(Here(edge.submitter, edge.files, edge.results), edge.queue, edge.results, edge.settings)
    made = Runner(tools, edge.batches)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.fixture
async def runner(app: FastAPI) -> AsyncIterator[Runner]:
    """A runner that is there all the time."""
    async with runner_of(app) as made:
        yield made


Do = Callable[[ClaimedJob], str]


@pytest.fixture
async def work(app: FastAPI) -> AsyncIterator[dict[str, Do]]:
    """A worker of `echo` that answers with the prompt, or does what the test puts under "do"."""
    played = PlayedWorker(app.state.edge.queue, "generation:echo")
    told: dict[str, Do] = {"do": lambda job: "finish"}

    async def busy() -> None:
        while True:
            job = await played.next()
            match told["do"](job):
                case "finish":
                    text = job.spec.input["messages"][-1]["content"]
                    await played.finish(job, {"text": text, "finish_reason": "stop"})
                case "fail":
                    await played.fail(job, "invalid_request")

    running = asyncio.create_task(busy())
    yield told
    running.cancel()


def line(number: int, **fields: Any) -> dict[str, Any]:
    """A line of an input, right but for what the test says."""
    body = {"model": "echo", "messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": 5}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body} | fields


def jsonl(*lines: dict[str, Any]) -> bytes:
    """Lines as a file."""
    return "\n".join(json.dumps(one) for one in lines).encode()


async def upload(client: httpx.AsyncClient, content: bytes, **fields: Any) -> httpx.Response:
    """Upload a file."""
    parts: dict[str, Any] = {name: (None, value) for name, value in ({"purpose": "batch"} | fields).items()}
    return await client.post("/v1/files", files=parts | {"file": ("some/lines.jsonl", content)})


async def made(client: httpx.AsyncClient, content: bytes, **asked: Any) -> dict[str, Any]:
    """A batch of such an input."""
    file = (await upload(client, content)).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"} | asked
    answer = await client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def ended(client: httpx.AsyncClient, batch_id: str, deadline_s: float = 15) -> dict[str, Any]:
    """The batch once it is over."""
    async with asyncio.timeout(deadline_s):
        while True:
            batch: dict[str, Any] = (await client.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] in OVER:
                return batch
            await asyncio.sleep(0.02)


async def content(client: httpx.AsyncClient, file_id: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(text) for text in (await client.get(f"/v1/files/{file_id}/content")).text.splitlines()]
