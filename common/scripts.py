"""Loads the Lua scripts and runs them by their digest; every move of a job is one such call."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from common.cluster import Cluster
from common.connections import connect as connect

FOLDER = Path(__file__).parent / "lua"
INCLUDE = "-- include "
#: Why Redis may refuse all writes. Inside a script, 6.2 wraps the reason in another error; MISCONF (its disk is full)
#: and NOREPLICAS (fewer replicas than min-replicas-to-write) have no class of their own.
REFUSALS = {"OOM": OutOfMemoryError, **dict.fromkeys(("READONLY", "MISCONF", "NOREPLICAS"), ReadOnlyError)}
#: Where scripts ask for the time, and where they ask instead when it is simulated: a key of the shard.
CLOCK = "redis.call('TIME')"
SIMULATED_CLOCK = "redis.call('HMGET', KEYS[1] .. 'clock', 's', 'us')"


class SimulatedTime(redis.Redis):
    """A client whose scripts run at the time that `set_time` says: for plans of what would happen."""

    async def set_time(self, prefix: str, at: float) -> None:
        """It is this time (Unix seconds) on a shard now."""
        seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
        await execute(self, "HSET", f"{prefix}clock", "s", seconds, "us", micros)


@cache
def source(name: str, simulated: bool = False) -> str:
    """A script's text with what it includes, and what that includes."""
    text = _text(name)
    return text.replace(CLOCK, SIMULATED_CLOCK) if simulated else text


def _text(name: str) -> str:
    lines = (FOLDER / f"{name}.lua").read_text().splitlines()
    return "\n".join(_text(_included(line)) if line.startswith(INCLUDE) else line for line in lines)


def _included(line: str) -> str:
    return line.removeprefix(INCLUDE).strip().removesuffix(".lua")


@cache
def digest(name: str, simulated: bool = False) -> str:
    """A script's SHA-1, as Redis names it."""
    return hashlib.sha1(source(name, simulated).encode(), usedforsecurity=False).hexdigest()


async def run(client: redis.Redis, name: str, prefix: str, *args: Any) -> Any:
    """Run a script on one shard. A Redis that does not know it (a restart, SCRIPT FLUSH) is told, once."""
    keys, simulated = _keys(client, prefix), isinstance(client, SimulatedTime)
    try:
        try:
            return await execute(client, "EVALSHA", digest(name, simulated), *keys, *args)
        except NoScriptError:
            return await execute(client, "EVAL", source(name, simulated), *keys, *args)
    except ResponseError as error:
        refusal = re.search(rf"(?:^|-)({'|'.join(REFUSALS)}) ", str(error))
        if refusal is None:
            raise
        raise REFUSALS[refusal[1]](str(error)) from error


def _keys(client: redis.Redis, prefix: str) -> tuple[Any, ...]:
    # While a slot moves, its keys are on two nodes and a script would see half of them. Redis cannot know, since the
    # keys are not declared; but with two keys that are never there, both nodes refuse it until the move is over.
    return (2, prefix, f"{prefix}:") if isinstance(client, Cluster) else (1, prefix)


async def execute(client: redis.Redis, *command: Any) -> Any:
    """One command as it is (redis-py's methods are typed for its sync and its asyncio client at once)."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]
