"""Callers who do not give up: they send again with the same key, and read on from the last number they saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from common.jobs import JobRecord
from common.results import Results
from common.states import TERMINAL
from common.usage import UsageSums
from tests.producer.sse import Seen, events_of


async def insist(client: httpx.AsyncClient, key: str, body: dict[str, Any]) -> str:
    """Submit as a careful client does: with a key, again and again until the web process answers."""
    while True:
        try:
            answer = await client.post("/v1/jobs", json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        if answer.status_code == 503:
            await asyncio.sleep(0.1)
            continue
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["id"])


async def read_to_the_end(client: httpx.AsyncClient, job: str) -> list[Seen]:
    """Read a job's events, coming back with the last number whenever the stream breaks."""
    seen: list[Seen] = []
    while not (seen and seen[-1].event == "state" and seen[-1].data["status"] in TERMINAL):
        headers = {"last-event-id": str(seen[-1].seq)} if seen else {}
        try:
            async with client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
                if response.status_code == 200:
                    async for event in events_of(response):
                        seen.append(event)
                else:
                    await asyncio.sleep(0.1)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    return seen


async def every_record(results: Results) -> list[JobRecord]:
    """All jobs that Redis knows, acknowledged or not."""
    records: list[JobRecord] = []
    page = await results.list_jobs(limit=200)
    while True:
        records += page.records
        if page.next is None:
            return records
        page = await results.list_jobs(limit=200, after=page.next)


async def usage_adds_up(results: Results) -> None:
    """What the sums of usage say is what all records say: each job once, whoever died and whatever was lost."""
    expected: Counter[tuple[str, str, str]] = Counter()
    for record in await every_record(results):
        who = record.user, record.model
        expected[*who, record.status.value] += 1
        expected[*who, "gpu_ms"] += record.gpu_ms or 0
        for name in ("prompt_tokens", "completion_tokens"):
            expected[*who, name] += int((record.usage or {}).get(name, 0))
    today = datetime.now(UTC).date()
    days = today - timedelta(1), today
    sums: Counter[tuple[str, str, str]] = Counter()
    for row in await UsageSums(results.redis, results.settings).used(*days, ["owner", "model"]):
        assert row.owner
        assert row.model
        sums.update({(row.owner, row.model, name): number for name, number in row.sums.items()})
    expected = +expected
    assert sums == expected, [(expected - sums), (sums - expected)]
