"""Connections that pack commands in C, and the client that fits an address."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as redis
from arq.connections import RedisSettings

from common import connections
from common.cluster import Cluster
from common.settings import Settings
from workers.settings_class import effective_settings


@pytest.fixture
def packed() -> connections.PackedConnection:
    """A connection that is never opened."""
    return connections.PackedConnection()


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "key"),
        ("SET", "key", b"\x00\xff", "PX", 1000),
        ("CONFIG GET", "hash-*"),
        ("EVALSHA", "0" * 40, 1, "prefix", "é", 1.5, 10**12),
        ("PING",),
        ("XADD", "key", "*", "field", ""),
    ],
)
def test_commands_are_packed_as_redis_py_packs_them(
    packed: connections.PackedConnection, command: tuple[Any, ...]
) -> None:
    ours = b"".join(packed.pack_command(*command))
    theirs = b"".join(redis.Connection().pack_command(*command))
    assert ours == theirs


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://host:1/2", connections.PackedConnection),
        ("rediss://host:1/2", connections.PackedSSLConnection),
        ("unix:///a/socket?db=2", connections.PackedUnixConnection),
    ],
)
async def test_a_client_fits_its_address_and_never_waits_for_ever(url: str, connection: type[Any]) -> None:
    client = connections.connect(Settings(redis_url=url, redis_timeout_s=7, bell_timeout_s=1))
    pool: Any = client.connection_pool
    made = pool.make_connection()
    assert type(made) is connection
    assert (made.socket_timeout, made.db) == (7, 2)
    assert isinstance(made.pack_command("PING"), list)
    await client.aclose()


async def test_a_cluster_and_sentinels_are_reached_by_the_same_packed_connections() -> None:
    def client(url: str) -> Any:
        return connections.connect(Settings(redis_url=url, redis_timeout_s=7, bell_timeout_s=1))

    cluster = client("redis-cluster://user:pass@one:1,two:2")
    assert isinstance(cluster, Cluster)
    node: Any = cluster._client(("one", 1)).connection_pool.make_connection()  # type: ignore[no-untyped-call]
    master = client("redis-sentinel://user:pass@one:1/name/2")
    made: Any = master.connection_pool.make_connection()
    for connection in (node, made):
        assert connections.Packed in type(connection).__mro__
        assert (connection.socket_timeout, connection.username, connection.password) == (7, "user", "pass")
    assert (node.host, node.db, made.db) == ("one", 0, 2)
    await cluster.aclose()
    await master.aclose()


def test_the_sentinels_of_arqs_settings_are_kept() -> None:
    given = RedisSettings(host=[("one", 1), ("two", 2)], sentinel=True, sentinel_master="m", database=3, password="p/w")
    url = effective_settings(Settings(), {"redis_settings": given}).redis_url
    assert url == "redis-sentinel://:p%2Fw@one:1,two:2/m/3"
