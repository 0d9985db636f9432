"""A receiver on loopback, which is exempt here, and a delivery worker with a quick schedule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from common.egress import Egress
from common.queue import Queue
from common.settings import Settings
from tests.conformance.world import World
from workers.delivery import Deliverer

Deliver = Callable[..., Awaitable[Deliverer]]


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A queue on a real Redis."""
    settings = Settings(
        redis_url=redis_url,
        data_dir=tmp_path,
        webhook_allow="127.0.0.1",
        webhook_timeout_s=1,
        webhook_retry_s=(0.2, 0.4),
        lease_s=1,
        bell_timeout_s=0.5,
        inline_bytes=2000,
        webhook_body_bytes=20_000,
    )
    queue = await Queue.connect(settings)
    made = World(queue.redis, settings, "redis")
    yield made
    await made.results.close()
    await queue.close()
    await made.queue.close()


@pytest.fixture
async def deliver(world: World) -> AsyncIterator[Deliver]:
    """Start a delivery worker in this process; settings by name."""
    running: list[asyncio.Task[None]] = []

    async def start(egress: Egress | None = None, **values: Any) -> Deliverer:
        queue = Queue(world.redis, world.settings.model_copy(update=values))
        made = Deliverer(queue, egress)
        running.append(asyncio.create_task(made.run()))
        return made

    yield start
    for task in running:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
