"""A TCP proxy before Redis that cuts, delays, drops and half-opens connections on demand.

A request whose reply is lost has been served: what is lost is only the news of it.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from contextlib import suppress

from tests.redis_server import free_port


class Proxy:
    """Forwards to a port of this machine. Its moods hold for connections that are open and for those to come."""

    def __init__(self, target: int, seed: int = 0) -> None:
        self.port = free_port()
        self.target = target
        self.silent = False  # drop what comes, both ways, and keep connections open: a cut cable
        self.half_open = False  # requests go through, replies do not
        self.delay_s = 0.0  # hold every reply for so long
        self.cut_replies: list[bytes] = []  # requests with such text are served, then their connection is cut
        self.lose = 0.0  # the share of all replies that are lost, each with its connection
        self.replies = 0  # forwarded or lost, pings and blocking reads too
        self.cuts = 0
        self._chance = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[Writer] = set()
        self._serving: set[asyncio.Future[None]] = set()

    @property
    def url(self) -> str:
        """Redis' address by way of this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening and cut everything."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    def cut(self) -> None:
        """Break every open connection."""
        for writer in self._writers:
            writer.transport.abort()

    def _connected(self, reader: Reader, writer: Writer) -> None:
        serving = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        doomed = asyncio.Event()
        ways = (self._requests(reader, far_writer, doomed), self._replies(far_reader, writer, doomed))
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in (writer, far_writer):
            one.transport.abort()
        self._writers -= {writer, far_writer}

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if any(text in data for text in self.cut_replies):
                    doomed.set()
                if not self.silent:
                    writer.write(data)

    async def _replies(self, reader: Reader, writer: Writer, doomed: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self.replies += 1
                if doomed.is_set() or self._chance.random() < self.lose:
                    self.cuts += 1
                    return
                await asyncio.sleep(self.delay_s)
                if not (self.silent or self.half_open):
                    writer.write(data)
