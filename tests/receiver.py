"""A webhook's receiver for tests: a bare TCP server that answers as it is told, and keeps all that it was sent."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def status(code: int, *headers: str, body: str = "") -> bytes:
    """An answer."""
    head = [f"HTTP/1.1 {code} Said", *headers, f"content-length: {len(body)}", "connection: close"]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


@dataclass
class Receiver:
    """Give it answers; the last one is given for ever."""

    answers: list[Answer] = field(default_factory=lambda: [status(200)])
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    sent: int = 0
    port: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        """Listen on a port of its own."""
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def will(self, *answers: Answer) -> None:
        """What to answer with from now on."""
        self.answers = list(answers)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def get(self, count: int, deadline_s: float = 10) -> list[Received]:
        """So many requests, once they are there."""
        async with asyncio.timeout(deadline_s):
            while len(self.received) < count:
                self.news.clear()
                await self.news.wait()
        return self.received

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(self._pairs(head[1:]))
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(Received(head[0], headers, body, asyncio.get_running_loop().time()))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.news.set()
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        writer.close()

    @staticmethod
    def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                yield name.lower(), value.strip()


async def never(writer: asyncio.StreamWriter) -> None:
    """No answer."""
    await asyncio.sleep(3600)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    """A head that never ends, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_body(writer: asyncio.StreamWriter) -> None:
    """A good status, and a body that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.02)


class Flood:
    """An answer of a gigabyte; counts what the other end let through."""

    def __init__(self, head: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n") -> None:
        self.head = head
        self.written = 0

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        """Write until nobody reads."""
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(self.head)
        with suppress(OSError):
            while self.written < 1_000_000_000:
                writer.write(b"a" * 65_536)
                await writer.drain()
                self.written += 65_536
