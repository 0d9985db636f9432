"""Whoever has to ask again is told when: by the eta of the job, in whole seconds and to the millisecond."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI

from common.jobs import encode
from tests.producer.test_submit import GENERATION
from tests.producer.worker import PlayedWorker

QUEUE = "generation:echo"


async def known(app: FastAPI, slots: int = 1, run_ms: int = 20_000) -> None:
    """A worker that lives, and run times of a queue whose jobs are much alike."""
    queue = app.state.edge.queue
    await queue.renew(QUEUE, "w1", encode({"id": "w1", "slots": slots, "takes": slots}), [])
    runs = f"200 0 0 {run_ms} 0 0 0.0004 {run_ms} 0"
    await queue.redis.hset(f"{queue.keys.queue(QUEUE)}meta", "runs", runs)


def hint(response: httpx.Response) -> tuple[int, int]:
    """Seconds and milliseconds until the next poll."""
    return int(response.headers["retry-after"]), int(response.headers["retry-after-ms"])


async def test_a_poll_is_due_a_little_before_the_job_is_expected_to_be_done(
    client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker
) -> None:
    await known(app)
    submitted = await client.post("/v1/jobs", json=GENERATION)
    eta = submitted.json()["eta"]
    links = submitted.json()["links"]
    assert 15 < eta["p50"] < 25
    assert eta["p50"] < eta["p90"]
    for response in (submitted, await client.get(links["self"]), await client.get(links["result"])):
        seconds, ms = hint(response)
        assert 12 <= seconds <= 20
        assert abs(seconds * 1000 - ms) <= 500
        assert ms < 1000 * eta["p50"]
    job = await worker.claim()
    assert 12 <= hint(await client.get(links["result"]))[0] <= 20
    await worker.finish(job)
    for response in (await client.get(links["self"]), await client.get(links["result"])):
        assert response.status_code == 200
        assert "retry-after" not in response.headers


async def test_an_answer_in_the_background_says_when_to_ask(client: httpx.AsyncClient, app: FastAPI) -> None:
    await known(app)
    asked = {"model": "echo", "input": "Say it.", "background": True}
    created = await client.post("/v1/responses", json=asked)
    assert created.json()["status"] == "queued"
    assert hint(created)[0] >= 12
    assert hint(await client.get(f"/v1/responses/{created.json()['id']}"))[0] >= 12
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    left = await client.post("/v1/chat/completions", json=body, headers={"Prefer": "respond-async"})
    assert left.status_code == 202
    assert hint(left)[0] >= 20  # behind the other


async def test_short_jobs_are_asked_for_after_a_second_or_by_milliseconds(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await known(app, run_ms=200)
    seconds, ms = hint(await client.post("/v1/jobs", json=GENERATION))
    assert seconds == 1
    assert 50 <= ms < 250


async def test_where_nothing_is_known_polls_become_rarer_as_the_job_grows_old(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    response = await client.post("/v1/jobs", json=GENERATION)
    assert response.json()["eta"] is None
    assert hint(response) == (1, 1000)
    key = app.state.edge.queue.keys.job(response.json()["id"])
    history = (await app.state.edge.queue.redis.hget(key, "history")).decode()
    await app.state.edge.queue.redis.hset(key, "history", f"{history[:-13]}{int(history[-13:]) - 60_000}")
    assert 11 <= hint(await client.get(response.json()["links"]["self"]))[0] <= 13


async def test_jobs_whose_places_are_not_counted_have_an_eta_from_how_many_came_before(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await known(app, slots=4)
    first = (await client.post("/v1/jobs", json=GENERATION)).json()
    assert first["queue_position"] == 1
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=GENERATION) for _ in range(40)))
    records = [answer.json() for answer in answers]
    guessed = sorted((one["created_at"], one["eta"]["p50"]) for one in records if one["queue_position"] is None)
    assert len(guessed) > 5
    assert guessed[-1][1] > guessed[0][1]
    last = (await client.get(records[-1]["links"]["self"])).json()
    assert last["queue_position"] is not None
    assert 0.4 < records[-1]["eta"]["p50"] / last["eta"]["p50"] < 2.5


async def test_forecasts_and_how_many_came_true_stand_in_the_metrics(
    client: httpx.AsyncClient, app: FastAPI, worker: PlayedWorker
) -> None:
    await known(app)
    await client.post("/v1/jobs", json=GENERATION)
    await worker.finish(await worker.claim())
    text = (await client.get("/metrics")).text
    assert 'jarvis_eta_total{queue="generation:echo"} 1.0' in text
    assert 'jarvis_eta_covered_total{queue="generation:echo"} 1.0' in text
