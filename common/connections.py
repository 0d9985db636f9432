"""How Jarvis reaches Redis: connections that pack commands in C, and one client for every form of address.

Whatever stands behind the address, no call is blocked longer than `redis_timeout_s`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import redis.asyncio as redis
from redis.asyncio.cluster import ClusterParser
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.address import CLUSTER, SENTINEL, Address, parse
from common.cluster import Cluster
from common.settings import Settings

#: A sentinel that does not answer within this is passed over.
SENTINEL_TIMEOUT_S = 1.0


class PackedConnection(redis.Connection):
    """redis-py's asyncio connection, packing commands in C (the stock one spends a third of a worker's time on it)."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command as one byte string; a name of two words ("CONFIG GET") goes out as two."""
        if " " in args[0]:
            args = (*args[0].split(), *args[1:])
        return [hiredis.pack_command(args)]  # type: ignore[no-any-return, unused-ignore]

    async def can_read_destructive(self) -> bool:
        """Whether this idle connection is no good: closed by the other end, or with bytes that nobody waits for.

        It looks at what the event loop has read. The stock one asks for more with a timeout of 0 before every command,
        which costs two turns of the loop, and the pool's lock meanwhile.
        """
        stream = self._reader
        if stream is None or stream.exception() is not None or stream.at_eof():
            return True
        return bool(stream._buffer) or self._parser._reader.has_data()  # type: ignore[attr-defined]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """As redis-py does, but without `asyncio.wait_for`.

        Before Python 3.12 that swallows a cancel which comes as the write ends, and a cancelled task would then wait
        for ever. It also makes a task of every command.
        """
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self.socket_timeout):
                self._writer.writelines(command)  # type: ignore[union-attr]
                await self._writer.drain()  # type: ignore[union-attr]
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("timeout writing to Redis") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"error writing to Redis: {error}") from error
        except BaseException:
            await self.disconnect(nowait=True)  # half a command may be written
            raise


class PackedSSLConnection(PackedConnection, redis.SSLConnection):
    """The same over TLS."""


class PackedUnixConnection(redis.UnixDomainSocketConnection):
    """The same over a Unix socket."""

    pack_command = PackedConnection.pack_command
    can_read_destructive = PackedConnection.can_read_destructive
    send_packed_command = PackedConnection.send_packed_command


class MasterConnection(PackedConnection, SentinelManagedConnection):
    """The same to whichever server the sentinels name when it connects."""


class MasterPool(SentinelConnectionPool):
    """Connections to the master, and to the sentinels that name it."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close them; those to the sentinels stay when only idle ones are closed, as after a change of master."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def connect(settings: Settings) -> redis.Redis:
    """A client with a pool of its own. Connects on first use; no call is blocked longer than `redis_timeout_s`."""
    address = parse(settings.redis_url)
    options: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "health_check_interval": 0,
    }
    if address.single:
        return _server(address.scheme, settings.redis_url, options)
    options |= {"username": address.username, "password": address.password}
    if address.scheme == CLUSTER:
        return _cluster(address, options)
    assert address.scheme == SENTINEL, address.scheme
    return _master(address, options)


def _server(scheme: str, url: str, options: dict[str, Any]) -> redis.Redis:
    kinds = {"redis": PackedConnection, "rediss": PackedSSLConnection, "unix": PackedUnixConnection}
    pool = redis.ConnectionPool.from_url(url, **options)
    pool.connection_class = kinds[scheme]
    return redis.Redis.from_pool(pool)  # owns the pool, so that closing the client closes it


def _cluster(address: Address, options: dict[str, Any]) -> redis.Redis:
    def node(host: str, port: int) -> redis.Redis:
        pool = redis.ConnectionPool(PackedConnection, host=host, port=port, parser_class=ClusterParser, **options)
        return redis.Redis.from_pool(pool)

    return Cluster(address.nodes, node, options["socket_timeout"])


def _master(address: Address, options: dict[str, Any]) -> redis.Redis:
    limit_s = min(SENTINEL_TIMEOUT_S, options["socket_timeout"])
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.nodes,
        sentinel_kwargs={
            "socket_timeout": limit_s,
            "socket_connect_timeout": limit_s,
            "username": address.sentinel_username,
            "password": address.sentinel_password,
        },
        db=address.db,
        connection_class=MasterConnection,
        **options,
    )
    return sentinels.master_for(address.master, connection_pool_class=MasterPool)  # type: ignore[no-any-return]
