"""Redis away: the process lives, says so in words, and accepts nothing; back again: it goes on by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import redis.asyncio as redis
from fastapi import FastAPI

from common.settings import Settings
from producer.app import create_app
from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import GENERATION
from tests.redis_server import RedisServer, free_port

NEEDS_REDIS = [
    ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/{id}"), ("GET", "/v1/jobs/{id}?wait=1"),
    ("GET", "/v1/jobs/{id}/result"), ("GET", "/v1/jobs/{id}/events"), ("POST", "/v1/jobs/{id}/cancel"),
    ("POST", "/v1/jobs/{id}/retry"), ("GET", "/v1/queues"), ("GET", "/v1/parked"), ("POST", "/v1/parked/{id}/replay"),
    ("GET", "/v1/workers"), ("GET", "/readyz"), ("GET", "/metrics"),
]  # fmt: skip
JOB_ID = "job_00" + "0" * 22


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


def answer_to_an_outage(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) >= 1
    assert response.headers["x-should-retry"] == "true"
    assert problem_of(response)["type"].endswith("#temporary-reduced-capacity")


@pytest.mark.parametrize(("method", "path"), NEEDS_REDIS)
async def test_without_redis_all_that_needs_it_answers_503(
    catalogue: Path, tmp_path: Path, method: str, path: str
) -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", catalogue=catalogue, data_dir=tmp_path)
    async with served(settings) as client:
        started = time.perf_counter()
        answer_to_an_outage(await client.request(method, path.format(id=JOB_ID), json=GENERATION))
        assert time.perf_counter() - started < 1


async def test_without_redis_the_process_starts_and_is_healthy(catalogue: Path, tmp_path: Path) -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", catalogue=catalogue, data_dir=tmp_path)
    async with served(settings) as client:
        assert (await client.get("/healthz")).status_code == 200
        # Until Redis has said whether there are API keys, nobody gets further.
        answer_to_an_outage(await client.get("/v1/models"))
        answer_to_an_outage(await client.post("/v1/jobs", json={"kind": "x"}))


async def test_after_a_restart_of_redis_it_goes_on_by_itself(
    start_redis: Callable[..., RedisServer], catalogue: Path, tmp_path: Path
) -> None:
    server = start_redis(aof=True)
    async with served(Settings(redis_url=server.url, catalogue=catalogue, data_dir=tmp_path)) as client:
        accepted = await client.post("/v1/jobs", json=GENERATION)
        assert accepted.status_code == 202
        server.kill9()
        for _ in range(3):
            answer_to_an_outage(await client.post("/v1/jobs", json=GENERATION))
        server.restart()
        assert (await client.post("/v1/jobs", json=GENERATION)).status_code == 202
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get(accepted.headers["location"])).json()["id"] == accepted.json()["id"]


async def test_a_full_redis_answers_503_and_keeps_no_half_job(
    start_redis: Callable[..., RedisServer], catalogue: Path, tmp_path: Path
) -> None:
    server = start_redis(config={"maxmemory": "1", "maxmemory-policy": "noeviction"})
    async with served(Settings(redis_url=server.url, catalogue=catalogue, data_dir=tmp_path)) as client:
        answer_to_an_outage(await client.post("/v1/jobs", json=GENERATION))
        with server.client() as direct:
            assert direct.keys("*job:*") == []


async def test_a_mistake_of_ours_is_a_500_without_its_inside(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(app.state.edge.results, "ready", broken)
    with caplog.at_level(logging.ERROR):
        response = await client.get("/readyz")
    assert response.status_code == 500
    assert problem_of(response)["detail"] == "the server made a mistake; it is in its log"
    assert "secret" not in response.text
    assert "secret inside" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


async def test_an_error_of_redis_that_is_our_mistake_is_a_500(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise redis.ResponseError("WRONGTYPE Operation against a key")

    monkeypatch.setattr(app.state.edge.results, "ready", broken)
    assert (await client.get("/readyz")).status_code == 500


@pytest.mark.parametrize(
    "error", [redis.ResponseError("MISCONF Errors writing to the AOF file"), redis.ReadOnlyError()]
)
async def test_an_error_of_redis_that_says_it_cannot_serve_is_a_503(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def broken() -> None:
        raise error

    monkeypatch.setattr(app.state.edge.results, "ready", broken)
    answer_to_an_outage(await client.get("/readyz"))


async def test_a_frozen_redis_is_given_up_in_time(
    start_redis: Callable[..., RedisServer], catalogue: Path, tmp_path: Path
) -> None:
    server = start_redis()
    settings = Settings(
        redis_url=server.url, catalogue=catalogue, data_dir=tmp_path, redis_timeout_s=0.5, bell_timeout_s=0.4
    )
    async with served(settings) as client:
        assert (await client.get("/readyz")).status_code == 200
        server.pause()
        async with asyncio.timeout(5):
            answer_to_an_outage(await client.post("/v1/jobs", json=GENERATION))
        server.resume()
        assert (await client.post("/v1/jobs", json=GENERATION)).status_code == 202
