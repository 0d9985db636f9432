"""Bringing a dead engine back: one restart at a time, however many jobs saw it die, and new jobs wait for it."""

from __future__ import annotations

import asyncio
import logging
import time

from common.errors import EngineDead
from workers.engines.protocol import Engine

log = logging.getLogger("jarvis.engines")

TRIES = 3
PAUSE_S = 1.0


class Revival:
    """Restarts one engine when it is dead."""

    def __init__(self, engine: Engine, pause_s: float = PAUSE_S) -> None:
        self._engine = engine
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Return once the engine serves, restarting it first if it is dead; raises EngineDead if that fails."""
        if self._engine.alive:
            return
        # Shielded: a job that is cancelled while it waits must not stop the restart that others wait for.
        await asyncio.shield(self.begin())

    def begin(self) -> asyncio.Task[None]:
        """The running restart, or a new one (which does nothing if the engine has come back meanwhile)."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._restart())
            self._task.add_done_callback(_retrieve)
        return self._task

    async def end(self) -> None:
        """Give up a restart in progress."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _restart(self) -> None:
        for attempt in range(1, TRIES + 1):
            if self._engine.alive:
                return
            try:
                started = time.monotonic()
                log.warning("engine died; restarting it (attempt %d of %d)", attempt, TRIES)
                await self._engine.restart()
                log.warning("engine restarted in %.1f s", time.monotonic() - started)
            except Exception as error:  # noqa: BLE001 - whatever a backend raises at start, the answer is the same
                log.error("engine restart failed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(self._pause_s * attempt)
        if not self._engine.alive:
            raise EngineDead(f"the engine died and {TRIES} restarts failed")


def _retrieve(task: asyncio.Task[None]) -> None:
    # Nobody may be waiting; without this asyncio would report the logged failure a second time, as forgotten.
    if not task.cancelled():
        task.exception()
