"""Server-sent events: every event once and in order, as it happens, from whatever number the reader has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message

from common.jobs import JobEvent
from producer.__main__ import Server
from producer.follow import EventStream
from tests.producer.sse import events_of, read_all
from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import GENERATION
from tests.producer.test_waiting import submitted
from tests.producer.worker import PlayedWorker, until


async def finished(client: httpx.AsyncClient, worker: PlayedWorker, texts: list[str]) -> str:
    """The id of a job that said these texts: queued, in_progress, one event a text, completed."""
    job_id = await submitted(client)
    job = await worker.claim()
    await worker.say(job, *texts)
    await worker.finish(job, {"text": "".join(texts), "finish_reason": "stop"})
    return job_id


async def test_a_finished_job_tells_all_its_events(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await finished(client, worker, ["A", " job\n", " \u2028waits"])
    events = await read_all(client, job_id)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.event for event in events] == ["state", "state", "token", "token", "token", "state"]
    assert [events[i].data["status"] for i in (0, 1, -1)] == ["queued", "in_progress", "completed"]
    assert [event.data for event in events[2:5]] == [{"text": "A"}, {"text": " job\n"}, {"text": " \u2028waits"}]


async def test_a_token_event_tells_all_but_the_tokens_ids(client: httpx.AsyncClient, worker: PlayedWorker) -> None:
    job_id = await submitted(client)
    job = await worker.claim()
    await worker.emit(job, "token", {"text": "", "ids": [1], "index": 1, "reasoning": "so"})
    await worker.finish(job, {"text": ""})
    tokens = [event.data for event in await read_all(client, job_id) if event.event == "token"]
    assert tokens == [{"text": "", "index": 1, "reasoning": "so"}]


async def test_the_stream_is_declared_so_that_nobody_holds_it_back(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    job_id = await finished(client, worker, [])
    response = await client.get(f"/v1/jobs/{job_id}/events")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.startswith("retry: 1000\n\nid: 1\nevent: state\ndata: {")


async def test_a_submit_that_accepts_events_is_answered_with_the_jobs_events(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    call = asyncio.create_task(client.post("/v1/jobs", json=GENERATION, headers={"Accept": "text/event-stream"}))
    job = await worker.next()
    await worker.say(job, "It", " ran.")
    await worker.finish(job, {"text": "It ran.", "finish_reason": "stop"})
    response = await call
    assert (response.status_code, response.headers["location"]) == (200, f"/v1/jobs/{job.id}")
    texts = [event.data["text"] async for event in events_of(response) if event.event == "token"]
    assert texts == ["It", " ran."]


@pytest.mark.parametrize("after", range(7))
async def test_a_reader_resumes_after_any_number(client: httpx.AsyncClient, worker: PlayedWorker, after: int) -> None:
    job_id = await finished(client, worker, ["a", "b", "c", "d"])
    expected = list(range(after + 1, 8))
    by_header = await read_all(client, job_id, headers={"Last-Event-ID": str(after)})
    by_query = await read_all(client, job_id, params={"starting_after": after})
    assert [event.seq for event in by_header] == [event.seq for event in by_query] == expected


async def test_the_header_of_a_reconnect_beats_the_address_it_repeats(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    job_id = await finished(client, worker, ["a", "b"])
    events = await read_all(client, job_id, params={"starting_after": 1}, headers={"Last-Event-ID": "4"})
    assert [event.seq for event in events] == [5]


async def test_a_reader_who_has_everything_is_told_to_stay_away(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    job_id = await finished(client, worker, ["a"])
    assert (await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "4"})).status_code == 204
    assert (await client.get(f"/v1/jobs/{job_id}/events?starting_after=99")).status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 17, "１"])
async def test_a_wrong_last_event_id_is_named(client: httpx.AsyncClient, last: str) -> None:
    headers = [(b"Last-Event-ID", last.encode())]
    response = await client.get(f"/v1/jobs/{await submitted(client)}/events", headers=headers)
    assert (response.status_code, problem_of(response)["field"]) == (422, "Last-Event-ID")


async def test_a_wrong_starting_after_is_named(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/v1/jobs/{await submitted(client)}/events?starting_after={2**64}")
    assert (response.status_code, problem_of(response)["field"]) == (422, "starting_after")


async def test_tokens_are_seen_when_they_are_said(live: httpx.AsyncClient, live_worker: PlayedWorker) -> None:
    job_id = await submitted(live)
    async with live.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        events = events_of(response)
        assert (await anext(events)).data["status"] == "queued"
        job = await live_worker.claim()
        assert (await anext(events)).data["status"] == "in_progress"
        delays = []
        for number in range(20):
            said = time.perf_counter()
            await live_worker.say(job, f"word {number}")
            assert (await anext(events)).data == {"text": f"word {number}"}
            delays.append(time.perf_counter() - said)
        await live_worker.emit(job, "progress", {"done": 0.5})
        assert (await anext(events)).data == {"done": 0.5}
        await live_worker.finish(job)
        assert (await anext(events)).data["status"] == "completed"
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert sorted(delays)[10] < 0.05  # a machine that is busy with other tests is slower


async def test_a_reader_that_drops_and_resumes_again_and_again_sees_every_event_once(
    live: httpx.AsyncClient, live_worker: PlayedWorker
) -> None:
    job_id = await submitted(live)
    said = [f"{number} " for number in range(60)]

    async def work() -> None:
        job = await live_worker.claim()
        for text in said:
            await live_worker.say(job, text)
            await asyncio.sleep(0)
        await live_worker.finish(job)

    working = asyncio.create_task(work())
    seen: list[tuple[int, str]] = []
    while not seen or seen[-1][1] != "completed":
        headers = {"Last-Event-ID": str(seen[-1][0])} if seen else {}
        async with live.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            count = 0
            async for event in events_of(response):
                seen.append((event.seq, event.data.get("text") or event.data["status"]))
                count += 1
                if count == 7:
                    break
    await working
    assert [seq for seq, _ in seen] == list(range(1, 64))
    assert [text for _, text in seen[2:-1]] == said


async def test_many_readers_see_the_same(live: httpx.AsyncClient, live_worker: PlayedWorker) -> None:
    job_id = await submitted(live)
    reading = [asyncio.create_task(read_all(live, job_id)) for _ in range(20)]
    job = await live_worker.claim()
    await live_worker.say(job, "a", "b", "c")
    await live_worker.finish(job)
    seen = await asyncio.gather(*reading)
    assert [[event.seq for event in events] for events in seen] == [[1, 2, 3, 4, 5, 6]] * 20


async def test_a_reader_who_leaves_leaves_nothing_behind(live: httpx.AsyncClient, server: Server) -> None:
    job_id = await submitted(live)
    wakes = server.web.state.edge.results.wakes
    async with live.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        await anext(events_of(response))
        assert wakes._listeners
    await until(lambda: not wakes._listeners)


async def test_a_stopping_process_ends_its_streams(live: httpx.AsyncClient, server: Server) -> None:
    job_id = await submitted(live)
    async with live.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        events = events_of(response)
        await anext(events)
        server.should_exit = True
        async with asyncio.timeout(2):
            assert [event async for event in events] == []


async def test_a_quiet_stream_is_kept_alive() -> None:
    async def nothing() -> AsyncIterator[list[JobEvent]]:
        await asyncio.sleep(3600)
        yield [JobEvent(1, "state", {})]

    sent: list[bytes] = []
    kept = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": keep-alive\n\n") == 2:
            kept.set()

    async def receive() -> Message:
        await kept.wait()
        return {"type": "http.disconnect"}

    async with asyncio.timeout(5):
        await EventStream(nothing(), asyncio.Event(), keep_alive_s=0.01)({"type": "http"}, receive, send)
    assert sent[-1] == b""
