"""One call to Redis: its reply, or an error within its time, and never the reply of another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.connections import MUCH, connect
from common.settings import Settings
from tests.producer.worker import until
from tests.redis_server import RedisServer

LIMIT_S = 0.5
pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """A Redis of the test's own, that it may stop."""
    return start_redis()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """A client that has called once, with a short limit to each call."""
    made = connect(Settings(redis_url=server.url, redis_timeout_s=LIMIT_S, bell_timeout_s=LIMIT_S / 2))
    await made.ping()
    yield made
    await made.aclose()


async def took(call: Any) -> float:
    """How long a call took that fails for want of an answer (s)."""
    began = time.monotonic()
    with pytest.raises(RedisTimeoutError):
        await call
    return time.monotonic() - began


async def test_a_call_that_is_not_answered_fails_within_its_time(server: RedisServer, client: Any) -> None:
    server.pause()
    try:
        for _ in range(2):  # on an old connection, and on a new one
            assert LIMIT_S * 0.9 < await took(client.ping()) < LIMIT_S * 1.5 + 0.5
    finally:
        server.resume()
    assert await client.echo("after") == b"after"


async def test_the_time_of_a_call_begins_with_it_however_long_the_connection_is_in_use(
    server: RedisServer, client: Any
) -> None:
    ends = time.monotonic() + 2.5 * LIMIT_S
    while time.monotonic() < ends:  # the alarm rings in the middle of these
        await client.blpop(["nothing"], timeout=LIMIT_S * 0.6)
    server.pause()
    try:
        assert LIMIT_S * 0.9 < await took(client.ping()) < LIMIT_S * 1.5 + 0.5
    finally:
        server.resume()


async def test_an_idle_connection_is_not_cut_by_the_alarm_of_a_call_that_was_answered(client: Any) -> None:
    before = await client.client_id()
    loop = asyncio.get_running_loop()
    rung = loop.create_future()
    loop.call_later(1.5 * LIMIT_S, rung.set_result, None)
    await rung
    assert await client.client_id() == before


async def test_the_reply_to_a_cancelled_call_is_not_taken_for_the_next_ones(server: RedisServer, client: Any) -> None:
    for i in range(20):
        server.pause()  # the reply comes after the next call was sent
        try:
            call = asyncio.create_task(client.echo(f"cancelled {i}"))
            for _ in range(1 + i % 3):  # at several points on its way
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            kept = asyncio.create_task(client.echo(f"kept {i}"))
            await asyncio.sleep(0)
        finally:
            server.resume()
        assert await kept == f"kept {i}".encode()


async def test_a_cancel_that_comes_as_a_call_is_overdue_stays_a_cancel(server: RedisServer, client: Any) -> None:
    connection = client.connection_pool._available_connections[0]
    server.pause()
    try:
        call = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        connection._began -= LIMIT_S
        connection._look()  # the alarm rings
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    finally:
        server.resume()


async def test_a_connection_that_breaks_under_a_call_fails_it_as_broken(server: RedisServer, client: Any) -> None:
    me = await client.client_id()
    waits = asyncio.create_task(client.blpop(["nothing"], timeout=LIMIT_S / 2))
    with server.client() as other:
        await until(lambda: any("blpop" in line["cmd"] for line in other.client_list()))
        other.client_kill_filter(_id=me)
    with pytest.raises(RedisConnectionError):
        await waits
    assert await client.echo("after") == b"after"


async def test_an_error_reply_is_raised_and_the_connection_kept(client: Any) -> None:
    before = await client.client_id()
    with pytest.raises(ResponseError, match="wrong number"):
        await client.execute_command("GET")
    assert await client.client_id() == before


async def test_a_command_larger_than_the_sockets_buffers_arrives_whole(client: Any) -> None:
    large = b"x" * (100 * MUCH)
    assert await client.set("large", large)
    assert await client.get("large") == large


async def test_calls_at_the_same_time_have_connections_of_their_own(client: Any) -> None:
    said = [f"call {i}".encode() for i in range(100)]
    assert await asyncio.gather(*(client.echo(text) for text in said)) == said
