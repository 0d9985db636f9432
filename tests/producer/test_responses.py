"""Responses with a played worker: over the death of web processes and workers, and what webhooks tell of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from common.queue import Outcome
from common.settings import Settings
from common.webhooks import new_secret
from producer.__main__ import Server, config
from producer.app import create_app
from tests.conformance.world import eventually
from tests.producer.test_webhooks import deliverer, outbox_of, sdk, settings  # noqa: F401
from tests.producer.worker import PlayedWorker
from tests.receiver import Receiver
from workers.delivery import Deliverer

ASKED = {"model": "echo", "input": "hello"}


@asynccontextmanager
async def web(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:  # noqa: F811
    """A web process of its own, and a client of it."""
    app = create_app(settings)
    made = Server(config(app, settings), app, settings)
    serving = asyncio.create_task(made.serve())
    await made.listening.wait()
    port = made.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client:
        yield client
    made.should_exit = True
    await serving


async def read(
    client: httpx.AsyncClient, method: str, path: str, until: Callable[[Any], bool] = lambda _: False, **asked: Any
) -> list[Any]:
    """The events of a stream, to its end or the first event of which `until` is true."""
    events = []
    async with client.stream(method, path, **asked) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if until(events[-1]):
                    break
    return events


def is_text(text: str) -> Callable[[Any], bool]:
    """Whether an event is of this text."""
    return lambda event: bool(event["type"] == "response.output_text.delta" and event["delta"] == text)


async def test_a_stream_goes_on_in_another_web_process_and_from_another_worker(
    settings: Settings,  # noqa: F811
    worker: PlayedWorker,
) -> None:
    body = {**ASKED, "background": True, "stream": True}
    async with web(settings) as first:
        reading = asyncio.create_task(read(first, "POST", "/v1/responses", until=is_text("two "), json=body))
        job = await worker.next()
        await worker.say(job, "one ")
        await worker.say(job, "two ")
        seen = await reading
    await worker.commit(Outcome.release(job, worker.last_seq[job.id]))  # as a worker does that is told to stop
    again = await worker.next()
    assert again.id == job.id
    path, after = f"/v1/responses/{seen[0]['response']['id']}", seen[-1]["sequence_number"]
    async with web(settings) as second:
        reading = asyncio.create_task(
            read(second, "GET", path, params={"stream": "true", "starting_after": str(after)})
        )
        await worker.say(again, "three")
        await worker.finish(again, {"text": "one two three", "finish_reason": "stop"})
        events = seen + await reading
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events == await read(second, "GET", path, params={"stream": "true"}), "word for word"
        resumed = await read(second, "GET", path, params={"stream": "true"}, headers={"Last-Event-ID": str(after)})
        assert seen + resumed == events, "a browser that comes back by itself"
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "one two three"
        assert events[-1]["response"] == (await second.get(path)).json()


async def test_a_response_that_its_caller_left_is_gone_if_it_was_not_to_be_stored(
    live: httpx.AsyncClient, live_worker: PlayedWorker
) -> None:
    body = {**ASKED, "store": False, "stream": True}
    reading = asyncio.create_task(read(live, "POST", "/v1/responses", until=is_text("one "), json=body))
    job = await live_worker.next()
    await live_worker.say(job, "one ")
    await reading

    async def gone() -> bool:
        return (await live.get(f"/v1/jobs/{job.id}")).status_code == 404

    await eventually(gone, what="the job is gone")


async def test_with_a_key_a_response_that_is_not_stored_is_found_again_only_by_its_key(
    live: httpx.AsyncClient, live_worker: PlayedWorker
) -> None:
    asked: Any = {"json": {**ASKED, "store": False}, "headers": {"Idempotency-Key": "mine"}}
    first = asyncio.create_task(live.post("/v1/responses", **asked))
    await live_worker.finish(await live_worker.next())
    made = (await first).json()
    assert (await live.post("/v1/responses", **asked)).json() == made
    assert (await live.get(f"/v1/responses/{made['id']}")).status_code == 404
    went_on = {**ASKED, "previous_response_id": made["id"]}
    assert (await live.post("/v1/responses", json=went_on)).json()["error"]["code"] == "previous_response_not_found"


async def test_a_conversation_cannot_grow_without_end(
    settings: Settings,  # noqa: F811
    worker: PlayedWorker,
) -> None:
    async with web(settings.model_copy(update={"max_body_bytes": 2000})) as client:
        answers = []
        previous: dict[str, str] = {}
        for _ in range(4):
            body = {**ASKED, "input": "word " * 200, "background": True, **previous}
            answers.append(await client.post("/v1/responses", json=body))
            if answers[-1].status_code == 200:
                await worker.finish(await worker.claim())
                previous = {"previous_response_id": answers[-1].json()["id"]}
    assert [one.status_code for one in answers] == [200, 200, 200, 400]
    assert answers[-1].json()["error"]["param"] == "previous_response_id"


async def test_the_end_of_a_response_in_the_background_is_told_by_its_own_id(
    sdk: openai.AsyncOpenAI,  # noqa: F811
    live_worker: PlayedWorker,
    deliverer: Deliverer,  # noqa: F811
    receiver: Receiver,
) -> None:
    secret = new_secret()
    standing = await sdk.webhooks.create(url=receiver.url, name="mine", event_types=["response.completed"])
    asked: Any = {**ASKED, "background": True}
    own: Any = {"webhook": {"url": receiver.url, "secret": secret}}
    made = await sdk.responses.create(**asked, extra_body=own)
    await live_worker.finish(await live_worker.next(), {"text": "hello", "finish_reason": "stop"})

    async def both() -> bool:
        return len(receiver.received) == 2

    await eventually(both, what="both are told")
    for key in (secret, standing.signing_secret):
        got = [one for one in receiver.received if _verifies(sdk, one, key)]
        assert len(got) == 1
        event = sdk.webhooks.unwrap(got[0].body, got[0].headers, secret=key)
        assert event.type == "response.completed"
        assert event.data.id == made.id
    assert (await sdk.responses.retrieve(made.id)).output_text == "hello"


def _verifies(sdk: openai.AsyncOpenAI, got: Any, secret: str) -> bool:  # noqa: F811
    try:
        sdk.webhooks.verify_signature(got.body, got.headers, secret=secret)
    except openai.InvalidWebhookSignatureError:
        return False
    return True


@pytest.mark.parametrize(
    ("webhook", "param"),
    [
        ({"url": "https://10.0.0.1/"}, "webhook.url"),
        ({"url": "https://example.org/", "events": ["job.failed"]}, "webhook.events"),
        ({"url": "https://example.org/", "payload": "full"}, "webhook.payload"),
    ],
)
async def test_what_is_wrong_with_a_responses_webhook_is_named(
    client: httpx.AsyncClient, webhook: dict[str, Any], param: str
) -> None:
    refused = await client.post("/v1/responses", json={**ASKED, "webhook": webhook})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert await outbox_of(client) == []
