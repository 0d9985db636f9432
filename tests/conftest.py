"""Fixtures of every test folder: one real redis-server per run, a maker of servers to break, a webhook receiver."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.receiver import Receiver
from tests.redis_server import RedisServer

# A shell starts what it puts in the background with SIGINT ignored, and every child of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The redis-server of this test run; do not kill it, ask `start_redis` for one of your own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Start a server of one's own, free to be killed: `start_redis(aof=True, config={...})`."""
    servers: list[RedisServer] = []

    def start(*, aof: bool = False, config: dict[str, str] | None = None, program: str | None = None) -> RedisServer:
        server = RedisServer(tmp_path_factory.mktemp("redis"), aof=aof, config=config, program=program)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.resume()
        server.stop()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """It answers 200 unless it is told otherwise."""
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the folder it lies in, so that `-m faults` needs no decorator."""
    for item in items:
        folder = item.path.parent.name
        if folder in ("integration", "faults", "engines"):
            item.add_marker(getattr(pytest.mark, folder))
