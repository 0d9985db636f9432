"""Conversations over HTTP: the field of a job, and the same field beside OpenAI's bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.producer.worker import PlayedWorker

JOB: dict[str, Any] = {"kind": "generation", "model": "echo", "input": {"prompt": "Say it."}, "user": "ada"}
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Say it."}]}


def turn(mode: str | None = None, key: str = "chat-1") -> dict[str, Any]:
    """The field."""
    return {"conversation": {"key": key} | ({"mode": mode} if mode else {})}


async def test_a_second_turn_waits_says_so_and_is_refused_where_it_may_not(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    first = (await client.post("/v1/jobs", json=JOB | turn())).json()
    second = (await client.post("/v1/jobs", json=JOB | turn())).json()
    assert (first["status"], second["status"]) == ("queued", "scheduled")
    seen = (await client.get(f"/v1/jobs/{second['id']}")).json()
    assert seen["waiting_code"] == "conversation"
    refused = await client.post("/v1/jobs", json=JOB | turn("reject"))
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"
    assert first["id"] in refused.json()["detail"]
    await client.post("/v1/jobs", json=JOB | turn("cancel_previous"))
    for job in (first, second):
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("conversation.key", {"conversation": {"key": "two words"}}),
        ("conversation.mode", {"conversation": {"key": "a", "mode": "later"}}),
        ("conversation", {"conversation": "a"}),
        ("conversation", {"conversation": {"key": "a"}, "delay_s": 5}),
    ],
)
async def test_what_is_wrong_with_it_is_named(client: httpx.AsyncClient, field: str, more: dict[str, Any]) -> None:
    refused = await client.post("/v1/jobs", json=JOB | more)
    assert refused.status_code == 422
    assert field in refused.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "echo", "prompt": "Say it."}),
        ("/v1/responses", {"model": "echo", "input": "Say it."}),
    ],
)
async def test_openais_bodies_take_it_too(
    client: httpx.AsyncClient, worker: PlayedWorker, path: str, body: dict[str, Any]
) -> None:
    asking = asyncio.create_task(client.post(path, json=body | turn()))
    await worker.next()
    refused = await client.post(path, json=body | turn("reject"))
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false", "OpenAI's clients would send it again"
    assert "unfinished" in refused.json()["error"]["message"]
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_openais_own_conversations_are_refused_by_name(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/responses", json={"model": "echo", "input": "x", "conversation": "conv_1"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "conversation"


async def test_a_list_says_which_turn_was_refused(client: httpx.AsyncClient) -> None:
    answers = (await client.post("/v1/jobs", json=[JOB | turn(), JOB | turn("reject")])).json()["data"]
    assert [one["object"] for one in answers] == ["job", "job.refused"]
    assert answers[1]["error"]["status"] == 409
