"""What comes in is counted, whatever its headers say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from producer.__main__ import Server
from producer.guard import Guard
from tests.producer.test_refusals import JSON, problem_of
from tests.producer.test_submit import GENERATION


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


async def test_a_chunked_body_without_a_length_is_cut_at_the_limit(live: httpx.AsyncClient) -> None:
    response = await live.post("/v1/jobs", content=chunks(10_000, 11), headers=JSON)
    assert response.status_code == 413
    assert problem_of(response)["field"] == "body"


async def test_a_chunked_body_within_the_limit_is_read(live: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for byte in json.dumps(GENERATION).encode():
            yield bytes([byte])

    assert (await live.post("/v1/jobs", content=body(), headers=JSON)).status_code == 202


async def test_a_declared_length_is_refused_before_the_body_is_sent(server: Server) -> None:
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(2):
        answer = await reader.read()  # until the connection is closed
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    writer.close()
    await writer.wait_closed()


async def test_a_flood_of_headers_is_refused(client: httpx.AsyncClient) -> None:
    many = [(f"x-{number}", "v") for number in range(120)]
    response = await client.get("/healthz", headers=many)
    assert (response.status_code, problem_of(response)["field"]) == (431, "headers")
    long = await client.get("/healthz", headers={"x-long": "v" * 40_000})
    assert long.status_code == 431


async def test_what_is_no_request_passes_through() -> None:
    seen: list[str] = []

    async def app(scope: dict[str, str], receive: object, send: object) -> None:
        seen.append(scope["type"])

    await Guard(app, 10)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


async def test_an_answer_that_broke_halfway_is_not_ended_as_if_it_were_whole() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise ZeroDivisionError

    async def send(message: object) -> None: ...

    scope = {"type": "http", "path": "/", "headers": []}
    with pytest.raises(ZeroDivisionError):
        await Guard(app, 10)(scope, None, send)  # type: ignore[arg-type]
