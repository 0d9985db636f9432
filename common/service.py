"""What every process of ours that works until it is told to stop does alike."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from common.errors import StoreUnavailable


def log_to_stderr(level: str) -> None:
    """One line per event on standard error."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


async def until_signal(name: str, work: Coroutine[Any, Any, None]) -> None:
    """Say that it is ready, and work until SIGTERM or SIGINT cancels it."""
    task = asyncio.ensure_future(work)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    logging.getLogger(f"jarvis.{name}").info("%s ready", name)
    with suppress(asyncio.CancelledError):
        await task


async def keep(log: logging.Logger, work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Do this piece of work for ever: again after a pause when it ends, or when Redis is away."""
    pause_s = 0.05
    while True:
        began = time.monotonic()
        try:
            await work(*args)
        except (RedisError, OSError, StoreUnavailable) as error:
            log.warning("Redis is away (%s): %s", type(error).__name__, error)
        if time.monotonic() - began > 10:
            pause_s = 0.05
        await asyncio.sleep(pause_s)
        pause_s = min(1.0, pause_s * 2)
