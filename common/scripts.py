"""Loads the Lua scripts and runs them by their digest; every move of a job is one such call."""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import hiredis
import redis.asyncio as redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.settings import Settings

FOLDER = Path(__file__).parent / "lua"
INCLUDE = "-- include "
#: Why Redis may refuse all writes. Inside a script, 6.2 wraps the reason in another error; MISCONF (its disk is full)
#: has no class of its own.
REFUSALS = {"OOM": OutOfMemoryError, "READONLY": ReadOnlyError, "MISCONF": ReadOnlyError}


class PackedConnection(redis.Connection):
    """redis-py's asyncio connection, packing commands in C (the stock one spends a third of a worker's time on it)."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command as one byte string; a name of two words ("CONFIG GET") goes out as two."""
        if " " in args[0]:
            args = (*args[0].split(), *args[1:])
        return [hiredis.pack_command(args)]  # type: ignore[no-any-return, unused-ignore]

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
    send_packed_command = PackedConnection.send_packed_command


def connect(settings: Settings) -> redis.Redis:
    """A client with a pool of its own. Connects on first use; no call is blocked longer than `redis_timeout_s`."""
    kinds = {"redis": PackedConnection, "rediss": PackedSSLConnection, "unix": PackedUnixConnection}
    scheme = settings.redis_url.split("://")[0]
    pool = redis.ConnectionPool.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        health_check_interval=0,
    )
    pool.connection_class = kinds.get(scheme, PackedConnection)
    return redis.Redis.from_pool(pool)  # owns the pool, so that closing the client closes it


@cache
def source(name: str) -> str:
    """A script's text with what it includes."""
    text = (FOLDER / f"{name}.lua").read_text()
    lines = [
        (FOLDER / line.removeprefix(INCLUDE).strip()).read_text() if line.startswith(INCLUDE) else line
        for line in text.splitlines()
    ]
    return "\n".join(lines)


@cache
def digest(name: str) -> str:
    """A script's SHA-1, as Redis names it."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


async def run(client: redis.Redis, name: str, prefix: str, *args: Any) -> Any:
    """Run a script on one shard. A Redis that does not know it (a restart, SCRIPT FLUSH) is told, once."""
    try:
        try:
            return await execute(client, "EVALSHA", digest(name), 1, prefix, *args)
        except NoScriptError:
            return await execute(client, "EVAL", source(name), 1, prefix, *args)
    except ResponseError as error:
        refusal = re.search(r"(?:^|-)(OOM|READONLY|MISCONF) ", str(error))
        if refusal is None:
            raise
        raise REFUSALS[refusal[1]](str(error)) from error


async def execute(client: redis.Redis, *command: Any) -> Any:
    """One command as it is (redis-py's methods are typed for its sync and its asyncio client at once)."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]
