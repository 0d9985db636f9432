"""How a caller stays with a job: hold the answer until it is done, or read its events as they happen (SSE).

A reader that resumes gives the number of its last event and gets what follows: no event twice, none left out,
whichever web process answers. A reader that goes away leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.errors import InvalidField
from common.jobs import JobEvent, JobRecord
from common.results import Results, StoredResult

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
RETRY_MS = 1000
SEQ_MAX = 2**53
# No line ends to the specification, but to many a client that splits text into lines.
_LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029")
_json = msgspec.json.Encoder().encode
SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def held(
    results: Results,
    job_id: str,
    wait_s: float,
    receive: Receive,
    stopping: asyncio.Event,
    result: bool,
    owner: str | None = None,
) -> StoredResult:
    """A job once it is terminal; before, when the time is over, the caller goes or this process stops."""
    waiting = asyncio.ensure_future(results.finished(job_id, wait_s, result, owner))
    await _first(waiting, _gone(receive), stopping.wait())
    return (
        waiting.result() if not waiting.cancelled() else StoredResult(await results.record(job_id, owner=owner), None)
    )


def resume_point(headers: Mapping[str, str], starting_after: int | None) -> int:
    """The number of the last event that the reader has, from Last-Event-ID or `starting_after`."""
    last = headers.get("last-event-id", "").strip()
    if not last:
        return starting_after or 0
    if not (last.isascii() and last.isdigit() and len(last) <= 16):
        raise InvalidField("Last-Event-ID", last, "the id of an event, a whole number")
    # A browser that reconnects repeats the address it was given at first, so the header knows better.
    return max(int(last), starting_after or 0)


def nothing_follows(record: JobRecord, after: int) -> bool:
    """Whether the reader has the job's last event; unless told so (204), a browser would come back for ever."""
    return record.terminal and after >= record.history[-1][0]


class Stream(Response):
    """Server-sent events, until `forward` is through, the reader goes or this process stops."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stopping: asyncio.Event,
        headers: Mapping[str, str] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        super().__init__(headers={**SSE_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self.stopping = stopping
        self.keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there is no reason to go on."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        forwarding = asyncio.ensure_future(self.forward(send))
        await _first(forwarding, self._keep_alive(send), _gone(receive), self.stopping.wait())
        if forwarding.cancelled():
            await self.left()
        elif error := forwarding.exception():
            # The reader comes back with its last number; what is wrong then gets an answer of its own.
            log.warning("a stream of events broke: %r", error)
        await send({"type": "http.response.body", "body": b""})

    async def forward(self, send: Send) -> None:
        """Send all there is to send."""
        raise NotImplementedError

    async def left(self) -> None:
        """The reader went, or has to come back."""

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self.keep_alive_s)
            await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})


class EventStream(Stream):
    """The events of one job, until the last one."""

    def __init__(
        self,
        events: AsyncIterator[list[JobEvent]],
        stopping: asyncio.Event,
        headers: Mapping[str, str] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        super().__init__(stopping, headers, keep_alive_s)
        self.events = events

    async def forward(self, send: Send) -> None:
        """Send each event as it comes."""
        await send({"type": "http.response.body", "body": f"retry: {RETRY_MS}\n\n".encode(), "more_body": True})
        async for events in self.events:
            body = encoded(events[0]) if len(events) == 1 else b"".join(map(encoded, events))
            await send({"type": "http.response.body", "body": body, "more_body": True})


def encoded(event: JobEvent) -> bytes:
    """One event on the wire."""
    data = escaped(_json(_shown(event)))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.event.encode(), data)


def escaped(data: bytes) -> bytes:
    """JSON without the characters that some clients take for the end of a line."""
    if data.isascii():
        return data
    for character, written in _LINE_ENDS:
        data = data.replace(character, written)
    return data


def _shown(event: JobEvent) -> dict[str, Any]:
    if event.event != "token":
        return event.data
    # Token ids are the workers' own business: they let another one go on.
    return {name: value for name, value in event.data.items() if name != "ids"}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(*awaitables: Any) -> None:
    """Wait until one of them ends and cancel the others, each of them to its very end."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: list[asyncio.Future[Any]]) -> None:
    # Asked until it obeys: under Python 3.11 a task that writes to Redis can miss a cancellation (asyncio.wait_for
    # returns the result of what it waited for instead).
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        await asyncio.sleep(0)  # nearly all end in their very next step, and this costs less than to wait for them
        if left := {task for task in left if not task.done()}:
            _, left = await asyncio.wait(left, timeout=0.1)
