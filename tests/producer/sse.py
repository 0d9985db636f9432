"""Reads server-sent events as a browser does: an event counts when its empty line has come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx


class Seen(NamedTuple):
    """One event as a reader saw it."""

    seq: int
    event: str
    data: dict[str, Any]


async def events_of(response: httpx.Response) -> AsyncIterator[Seen]:
    """The events of an open stream, as they come; comments and `retry` are passed over."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and "data" in fields:
            yield Seen(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}
        elif line and not line.startswith((":", "retry:")):
            name, _, value = line.partition(": ")
            assert name not in fields, "an event has one line of each kind"
            fields[name] = value


async def read_all(client: httpx.AsyncClient, job_id: str, **options: Any) -> list[Seen]:
    """Every event until the stream ends."""
    async with client.stream("GET", f"/v1/jobs/{job_id}/events", **options) as response:
        assert response.status_code == 200
        return [event async for event in events_of(response)]
