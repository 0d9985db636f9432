"""Every test of this folder runs twice: on fakeredis in this process, and on a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import fakeredis
import pytest
import redis.asyncio as redis

from common import scripts
from common.limits import Policy
from common.policies import Policies
from common.settings import Settings
from tests.conformance.world import MakeWorld, World


@pytest.fixture(params=["fakeredis", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which Redis the test runs on."""
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """The address of an empty Redis; nobody listens there for fakeredis."""
    return str(request.getfixturevalue("redis_url")) if kind == "redis" else "redis://fake:1/0"


@pytest.fixture
async def make_world(kind: str, url: str, tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Make a queue with settings by name: `make_world(lease_s=1)`. All of a test share one Redis."""
    worlds: list[World] = []
    fake = fakeredis.FakeServer(version=(7,))

    def connect(settings: Settings) -> redis.Redis:
        return fakeredis.FakeAsyncRedis(server=fake) if kind == "fakeredis" else scripts.connect(settings)

    def make(**values: object) -> World:
        settings = Settings(**{"redis_url": url, "data_dir": tmp_path} | values)  # type: ignore[arg-type]
        client: redis.Redis = (
            fakeredis.FakeAsyncRedis(server=fake) if kind == "fakeredis" else scripts.connect(settings)
        )
        worlds.append(World(client, settings, kind))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.results.close()
        await world.queue.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A queue with the settings of production."""
    return make_world()


@pytest.fixture
def share(world: World) -> Callable[..., Awaitable[None]]:
    """Sets an owner's part: `await share("ada", "weight=2", "in_progress=3")`."""
    policies = Policies(world.redis, world.settings)

    async def set_share(owner: str, *limits: str) -> None:
        await policies.set_share(owner, Policy.parse(limits))

    return set_share
