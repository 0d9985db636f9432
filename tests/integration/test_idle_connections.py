"""A connection of the pool that went bad while nobody used it is replaced before the next command, and only then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis

from common.connections import connect
from common.settings import Settings
from tests.producer.worker import until
from tests.redis_server import RedisServer


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.Redis]:
    """A client with one connection, idle."""
    made = connect(Settings(redis_url=redis_url))
    await made.ping()
    yield made
    await made.aclose()


async def number(client: redis.Redis) -> int:
    """Which connection Redis sees."""
    return int(await client.client_id())


async def test_commands_one_after_another_use_one_connection(client: redis.Redis) -> None:
    assert len({await number(client) for _ in range(50)}) == 1


async def test_a_connection_that_the_server_closed_is_replaced(client: redis.Redis, redis_server: RedisServer) -> None:
    for _ in range(20):
        before = await number(client)
        with redis_server.client() as other:
            other.client_kill_filter(_id=before)
        connection: Any = client.connection_pool._available_connections[0]
        await until(connection._reader.at_eof)  # the loop reads by itself that it is closed
        assert await number(client) != before


async def test_an_answer_that_nobody_waited_for_is_no_answer_to_the_next_command(client: redis.Redis) -> None:
    connection: Any = client.connection_pool._available_connections[0]
    connection._writer.write(b"PING\r\n")
    await until(lambda: connection._reader._buffer)
    assert await client.echo("mine") == b"mine"
