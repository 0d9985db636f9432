"""When Redis is away: which of its errors say so, and the one error that callers see then."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.errors import StoreUnavailable

#: Redis is away, loading, read-only or out of memory: nothing is wrong with the call, it may be sent again.
UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError, OSError)


async def answered(call: Awaitable[Any] | Any) -> Any:
    """What Redis answers to a call. Raises StoreUnavailable when it is away.

    redis-py types its methods for its sync and its asyncio client at once, so that no answer has a type here.
    """
    try:
        return await call
    except UNAVAILABLE as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> StoreUnavailable:
    """The error a caller sees when Redis is away."""
    return StoreUnavailable(type(error).__name__)
