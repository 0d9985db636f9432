"""Many callers at once over keep-alive connections, each sending its next request when its answer has come.

One process and one thread: bytes are made once, and of an answer only its status and length are looked at, so that the
server under test is what is measured.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from ops.bench.servers import BenchFailed

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What the callers saw: requests answered, in how many seconds, and the share of a core that the callers used."""

    requests: int
    seconds: float
    cpu_percent: float
    times_ms: list[float]


async def press(
    port: int,
    path: str,
    body: bytes,
    callers: int,
    seconds: float,
    headers: str = "",
    status: int = 202,
    pause_s: float = 0.0,
    once: bool = False,
) -> Load:
    """Keep so many requests in flight for some seconds; BenchFailed at the first answer that is not 202 (`status`).

    `once`: each caller has one request only.

    With a pause each caller rests so long on the average between an answer and its next request, and before its first:
    at random, as callers who know nothing of each other do. Those who rest alike would always ask in a row.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    request = _request(port, path, body, headers)
    connections = [_Caller(request, ended, f"HTTP/1.1 {status}".encode(), pause_s, once) for _ in range(callers)]
    for one in connections:
        await loop.create_connection(lambda one=one: one, "127.0.0.1", port)  # type: ignore[misc]
    started, cpu = time.perf_counter(), time.process_time()
    for one in connections:
        one.go_on()
    try:
        async with asyncio.timeout(seconds):
            await ended
    except TimeoutError:
        pass
    took, used = time.perf_counter() - started, time.process_time() - cpu
    for one in connections:
        one.close()
    times = [spent for one in connections for spent in one.times_ms]
    return Load(len(times), took, 100 * used / took, times)


def _request(port: int, path: str, body: bytes, headers: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class _Caller(asyncio.Protocol):
    def __init__(self, request: bytes, ended: asyncio.Future[None], good: bytes, pause_s: float, once: bool) -> None:
        self.times_ms: list[float] = []
        self._good = good
        self._pause_s = pause_s
        self._once = once
        self._request = request
        self._ended = ended
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def go_on(self) -> None:
        if self._pause_s:
            asyncio.get_running_loop().call_later(random.expovariate(1 / self._pause_s), self.send)
        else:
            self.send()

    def send(self) -> None:
        if self._transport.is_closing():
            return
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(HEAD_END)
        if head_end < 0 or len(self._received) < head_end + 4 + _length(self._received[:head_end]):
            return
        answer, self._received = self._received, b""
        if not answer.startswith(self._good):
            self._fail(f"answered {answer[:1000].decode(errors='replace')}")
            return
        self.times_ms.append(1000 * (time.perf_counter() - self._sent))
        if not self._once:
            self.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(f"the connection was lost: {error}")

    def _fail(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(BenchFailed(why))


def _length(head: bytes) -> int:
    start = head.lower().find(b"content-length:")
    return int(head[start + 15 :].split(b"\r\n", 1)[0])
