"""Whoever waits for a model that is being loaded is told so."""

from __future__ import annotations

import asyncio
from typing import Any

from common.jobs import JobSpec
from tests.conformance.world import eventually
from tests.worker.place import Place
from workers import loading


async def test_a_model_that_is_being_loaded_is_said_so_until_it_is_there(place: Place, monkeypatch: Any) -> None:
    """Even while the loading holds up the worker's event loop; said again, and over when it is loaded."""
    monkeypatch.setattr(loading, "QUICK_S", 0.0)
    loaded, over = asyncio.Event(), asyncio.Event()
    queue = place.queue
    job = await queue.submit(JobSpec(kind="generation", model="demo", input={}))

    async def load() -> None:
        async with loading.announced(place.settings, "generation:demo", "worker-1"):
            await loaded.wait()
        over.set()

    async def code() -> str | None:
        place.results.waiting._standings.clear()
        return (await place.results.record(job.id)).waiting_code

    async def told(what: str) -> bool:
        return await code() == what

    task = asyncio.create_task(load())
    await eventually(lambda: told("loading"))
    loaded.set()
    await asyncio.wait_for(over.wait(), 10)
    assert await code() == "no_worker"
    await task


async def test_what_is_loaded_at_once_is_not_announced(place: Place) -> None:
    async with loading.announced(place.settings, "generation:demo", "worker-1"):
        pass
    assert not await place.queue.redis.exists(f"{place.queue.keys.queue('generation:demo')}loading")
