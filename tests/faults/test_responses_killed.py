"""A response in the background, its reader, and SIGKILL of web and worker: every event once and in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from tests.faults.formation import WEB, Formation
from tests.waiting import until

ENDS = ("response.completed", "response.incomplete", "response.failed")


async def read_on(client: httpx.AsyncClient, path: str, seen: list[dict[str, Any]]) -> None:
    """Read a response's events to the last one, coming back with the last number whenever the connection breaks."""
    while not seen or seen[-1]["type"] not in ENDS:
        after = {"starting_after": str(seen[-1]["sequence_number"])} if seen else {}
        try:
            async with client.stream("GET", path, params={"stream": "true", **after}) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data: "):
                        seen.append(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError:
            await asyncio.sleep(0.05)


async def test_the_events_of_a_response_outlive_the_deaths_of_web_and_worker(formation: Formation) -> None:
    worker = formation.start("workers", "generation")
    await formation.scheduler()
    web = formation.start(*WEB)
    seen: list[dict[str, Any]] = []
    async with formation.client() as client:
        await formation.web_answers(client)
        await formation.workers("generation:chat", 1)
        body = {"model": "chat", "input": "tell", "max_output_tokens": 150, "background": True}
        made = (await client.post("/v1/responses", json=body)).json()
        path = f"/v1/responses/{made['id']}"
        reading = asyncio.create_task(read_on(client, path, seen))
        await until(lambda: len(seen) > 20, "the first events", step_s=0.02)
        web.kill()
        await until(lambda: len(seen) > 60, "events from another web process", step_s=0.02)
        worker.kill()
        await until(lambda: len(seen) > 100, "events from another worker", step_s=0.02)
        web.kill()
        await asyncio.wait_for(reading, 60)
        again: list[dict[str, Any]] = []
        await read_on(client, path, again)
        whole = (await client.get(path)).json()
        record = (await client.get(f"/v1/jobs/job_{made['id'].removeprefix('resp_')}")).json()
    assert record["claims"] == 2
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert seen == again
    assert seen[-1]["response"] == whole
    told = "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta")
    assert told == whole["output"][0]["content"][0]["text"]
    assert len(told.split()) == 150
