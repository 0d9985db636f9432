"""A small HTTP/1.1 client for measuring: one connection, no library, the same for every server under test.

On a machine of few cores the client's own CPU time is part of the figure, so it does as little as it can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from ops.bench.servers import BenchFailed

LIMIT_S = 120.0


class Connection:
    """One keep-alive connection to a server on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.headers: dict[str, str] = {}  # of the latest answer, names in lower case

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that a request is answered with; BenchFailed unless it is a 2xx."""
        async with asyncio.timeout(LIMIT_S):
            await self._send(method, path, body, headers or {})
            return json.loads(b"".join([chunk async for chunk in self._answer(path)]))

    async def events(self, method: str, path: str, body: Any = None) -> AsyncIterator[dict[str, str]]:
        """The server-sent events that a request is answered with, field by field."""
        await self._send(method, path, body, {"accept": "text/event-stream"})
        waiting = b""
        async for chunk in self._answer(path):
            *whole, waiting = (waiting + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for block in whole:
                fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if line.find(": ") > 0)
                if fields:
                    yield fields

    async def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{self._port}", f"content-length: {len(content)}"]
        lines += ["content-type: application/json"] if content else []
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await self._writer.drain()

    async def _answer(self, path: str) -> AsyncIterator[bytes]:
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        status = int(first.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        chunks = self._chunks() if self.headers.get("transfer-encoding") == "chunked" else self._whole()
        if status >= 300:
            raise BenchFailed(f"{path} answered {status}: {b''.join([c async for c in chunks]).decode()[:500]}")
        async for chunk in chunks:
            yield chunk

    async def _whole(self) -> AsyncIterator[bytes]:
        yield await self._reader.readexactly(int(self.headers["content-length"]))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
