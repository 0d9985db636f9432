"""A stand-in for an OpenAI-compatible upstream: real sockets, the wire as specified, faults on demand.

It serves what the tests of faults need (429, 500, a cut in the middle, silence, garbage). How a real server behaves
is tested against vLLM's own, in tests/engines.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

WORDS = ["one ", "two ", "three ", "four"]
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


@dataclass
class Reply:
    """One answer. `events` are streamed; after them the connection is cut, kept silent, or the answer ends."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    events: list[bytes] | None = None
    cut: bool = False
    late: bool = False  # not even its head comes before the gate is open
    silent: bool = False


def chunk(text: str = "", finish: str | None = None, chat: bool = False, **more: Any) -> bytes:
    """One event of a stream."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    return b"data: " + json.dumps({"choices": [choice], **more}, ensure_ascii=False).encode() + b"\n\n"


def stream(words: list[str], finish: str = "stop", usage: dict[str, int] | None = USAGE, chat: bool = False) -> Reply:
    """A whole answer."""
    events = [chunk(word, chat=chat) for word in words] + [chunk("", finish, chat)]
    if usage is not None:
        events.append(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    return Reply(events=[*events, b"data: [DONE]\n\n"])


class StandIn:
    """Gives `replies` in turn, then `usual`."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.usual = stream(WORDS)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.arrived: list[float] = []  # when each request came
        self.connections = 0
        self.running = 0
        self.most = 0
        self.left = 0  # callers that closed the connection before the answer's end
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = 0

    @property
    def url(self) -> str:
        """What a catalogue calls base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[StandIn]:
        """Listen until the block ends."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.gate.set()
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            request, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.requests.append((request.split()[1], headers, body))
            self.arrived.append(time.monotonic())
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if not await self._reply(self._next(body), reader, writer):
                    return
            finally:
                self.running -= 1

    def _next(self, body: dict[str, Any]) -> Reply:
        return self.replies.pop(0) if self.replies else self.usual

    async def _reply(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        streamed = reply.events is not None
        body = b"" if streamed else reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        length = "Transfer-Encoding: chunked" if streamed else f"Content-Length: {len(body)}"
        more = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        if reply.silent and not streamed:
            return await self._silence(reader)
        if reply.late:
            await self.gate.wait()
        writer.write(f"HTTP/1.1 {reply.status} Because\r\n{length}\r\n{more}\r\n".encode() + body)
        for event in reply.events or []:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await self._pause(reader)
        if reply.cut:
            return False
        if reply.silent:
            return await self._silence(reader)
        if streamed:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pause(self, reader: asyncio.StreamReader) -> None:
        """Between two events: until the gate is open, unless the caller leaves."""
        if self.gate.is_set():
            await asyncio.sleep(0)
            return
        opened, gone = asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(reader.read(1))
        done, pending = await asyncio.wait([opened, gone], return_when=asyncio.FIRST_COMPLETED)
        for one in pending:
            one.cancel()
        if gone in done:
            self.left += 1
            raise ConnectionResetError

    async def _silence(self, reader: asyncio.StreamReader) -> bool:
        if not await reader.read(1):
            self.left += 1
        return False
