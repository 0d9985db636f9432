"""A Redis that may be killed and a formation of processes on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults.formation import Formation
from tests.faults.proxy import Proxy
from tests.redis_server import RedisServer

#: `make faults` runs the full sizes of the acceptance tests; `make test` smaller ones of the same tests.
FULL = os.environ.get("JARVIS_FAULTS_FULL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At full size a hundred rounds or a thousand ticks take their time."""
    if FULL:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def own_redis(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """A redis-server with an append-only file."""
    return start_redis(aof=True)


@pytest.fixture
async def formation(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Formation]:
    """Nothing runs yet but Redis."""
    formation = Formation(own_redis, tmp_path)
    await formation.open()
    yield formation
    if not own_redis.running:
        own_redis.start()
    await formation.close()


@pytest.fixture
async def proxy(formation: Formation) -> AsyncIterator[Proxy]:
    """Stands between Redis and whoever is given its address."""
    proxy = Proxy(formation.redis.port)
    await proxy.start()
    yield proxy
    await proxy.stop()
