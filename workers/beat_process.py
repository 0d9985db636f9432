"""The worker's side of its beat: starts the process, hears of lost leases, starts it again should it die."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from common.settings import Settings
from workers.slots import SlotTable

log = logging.getLogger("jarvis.beat")


class BeatProcess:
    """Keeps one beat process alive as long as the worker."""

    def __init__(
        self,
        settings: Settings,
        queue: str,
        worker: str,
        table: SlotTable,
        about: dict[str, object],
        lost: Callable[[list[str]], None],
    ) -> None:
        self._table = table
        self._lost = lost
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._order = {
            "settings": settings.model_dump(mode="json"),
            "queue": queue,
            "worker": worker,
            "pid": os.getpid(),
            "fd": table.file.fileno(),
            "slots": table.slots,
            "about": about,
        }

    async def start(self) -> None:
        """Start it and wait for its first renewal: no job may be held that nobody renews."""
        self._keeper = asyncio.create_task(self._keep())
        await self._ready.wait()

    def tell(self, about: dict[str, object]) -> None:
        """What the worker says of itself from now on. Left out while the beat has not read what came before."""
        self._order["about"] = about
        if self.process is None or self.process.returncode is not None:
            return
        pipe = _pipe(self.process.stdin)
        if not pipe.is_closing() and not pipe.transport.get_write_buffer_size():
            pipe.write(msgspec.json.encode(about) + b"\n")

    async def stop(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    async def _keep(self) -> None:
        while True:
            try:
                process = await self._spawn()
            except OSError as error:
                log.warning("the beat process cannot be started, trying again: %s", error)
                await asyncio.sleep(0.5)
                continue
            try:
                await self._listen(process)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
            log.warning("the beat process ended (%s), starting it again", process.returncode)
            await asyncio.sleep(0.1)

    async def _spawn(self) -> asyncio.subprocess.Process:
        # The order goes by standard input, not by argument: it may hold Redis' password.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.beat",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._table.file.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))},
            start_new_session=True,  # a Ctrl-C is for the worker, which may still need its leases while it drains
        )
        self.process = process
        _pipe(process.stdin).write(msgspec.json.encode(self._order) + b"\n")
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        while line := await _pipe(process.stdout).readline():
            word, _, lease = line.decode().strip().partition(" ")
            if word == "ready":
                self._ready.set()
            elif word == "lost":
                self._lost([lease])


def _pipe(pipe: Any) -> Any:
    assert pipe is not None, "opened with PIPE"
    return pipe
