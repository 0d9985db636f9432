"""A batch whose processes are killed: every line is answered once, in order, and none is run as two jobs."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from typing import Any

import httpx

from tests.faults.conftest import FULL
from tests.faults.formation import BATCHES, WEB, Formation, Kept
from tests.waiting import DEADLINE_S, until

LINES = 10_000 if FULL else 1_000
KILLS = 2 if FULL else 1
SLOTS = 32
QUICK = ("workers", "tests.faults.handlers.quick")
LIMIT_S = 600.0 if FULL else DEADLINE_S


async def formed(formation: Formation) -> dict[str, Kept]:
    """A whole formation for a quick embedding model."""
    kept = {
        "web": formation.start(*WEB),
        "batches": formation.start(*BATCHES),
        "worker": formation.start(*QUICK),
        "scheduler": await formation.scheduler(),
    }
    async with formation.client() as client:
        await formation.web_answers(client)
    await formation.workers("embedding:quick", 1)
    await formation.says(kept["batches"], "batches ready")
    return kept


def line(number: int, **body: Any) -> str:
    """One line of an input."""
    asked = {"model": "quick", "input": f"text {number}"} | body
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": "/v1/embeddings", "body": asked})


async def submitted(client: httpx.AsyncClient, count: int, **asked: Any) -> str:
    """Upload so many lines and make a batch of them; returns its id."""
    content = "\n".join(line(number) for number in range(count)).encode()
    parts: Any = {"purpose": (None, "batch"), "file": ("lines.jsonl", content)}
    uploaded = await client.post("/v1/files", files=parts)
    assert uploaded.status_code == 200, uploaded.text
    body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"} | asked
    made = await client.post("/v1/batches", json=body)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def seen(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any] | None:
    """The batch, None while the web process is away."""
    try:
        found = await client.get(f"/v1/batches/{batch_id}")
    except httpx.TransportError:
        return None
    return found.json() if found.status_code == 200 else None


async def passed(client: httpx.AsyncClient, batch_id: str, count: int) -> None:
    """Wait until so many lines of a batch have ended."""

    async def there() -> bool:
        batch = await seen(client, batch_id)
        return batch is not None and (batch["request_counts"]["completed"] >= count or "completed_at" in batch)

    await until(there, f"{count} lines of {batch_id}", LIMIT_S, step_s=0.05)


async def ended(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    """The batch once it is over."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update(await seen(client, batch_id) or {})
        return found.get("status") in ("completed", "failed", "expired", "cancelled")

    await until(over, f"the end of {batch_id}: {found}", LIMIT_S, step_s=0.05)
    return found


async def lines_of(client: httpx.AsyncClient, file_id: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(text) for text in (await client.get(f"/v1/files/{file_id}/content")).text.splitlines()]


async def killed_now_and_then(
    client: httpx.AsyncClient, batch_id: str, kept: dict[str, Kept], names: list[str]
) -> None:
    """SIGKILL these processes in random order at random points of the batch's life."""
    moments = sorted(random.sample(range(LINES // 20, LINES * 9 // 10), len(names)))
    random.shuffle(names)
    for moment, name in zip(moments, names, strict=True):
        await passed(client, batch_id, moment)
        await until(lambda name=name: kept[name].alive, f"{name} is there again", step_s=0.02)  # type: ignore[misc]
        kept[name].kill()


async def test_every_line_of_a_batch_is_answered_once_in_order_whoever_is_killed(formation: Formation) -> None:
    kept = await formed(formation)
    began = time.monotonic()
    async with formation.client() as client:
        batch_id = await submitted(client, LINES)
        await killed_now_and_then(client, batch_id, kept, sorted(kept) * KILLS)
        batch = await ended(client, batch_id)
        assert batch["status"] == "completed", batch
        assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        answers = await lines_of(client, batch["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(LINES)]
    assert all(answer["response"]["status_code"] == 200 for answer in answers)
    jobs = [start.job for start in formation.ledger.starts()]
    print(f"{LINES} lines, {len(kept) * KILLS} kills, {time.monotonic() - began:.1f} s, {len(jobs)} runs")
    assert len(set(jobs)) == LINES  # no line is two jobs
    assert len(jobs) - LINES <= KILLS * SLOTS  # only what a killed worker held runs again


async def test_a_line_that_has_finished_is_not_run_again_by_who_takes_the_batch_over(formation: Formation) -> None:
    kept = await formed(formation)
    async with formation.client() as client:
        batch_id = await submitted(client, 600)
        for moment in (100, 300):
            await passed(client, batch_id, moment)
            await until(lambda: kept["batches"].alive, "it is there again")
            kept["batches"].kill()
        await passed(client, batch_id, 400)
        formation.start(*BATCHES, name="other")
        kept["batches"].send(signal.SIGSTOP)  # it is not gone, and will go on with what it had when another has that
        await passed(client, batch_id, 550)
        kept["batches"].send(signal.SIGCONT)
        batch = await ended(client, batch_id)
        answers = await lines_of(client, batch["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(600)]
    starts = [start.job for start in formation.ledger.starts()]
    assert len(starts) == len(set(starts)) == 600


async def test_a_batch_outlives_redis_with_its_append_only_file(formation: Formation) -> None:
    await formed(formation)
    async with formation.client() as client:
        batch_id = await submitted(client, 600)
        await passed(client, batch_id, 200)
        await formation.kill_redis()
        await asyncio.to_thread(formation.redis.start)
        batch = await ended(client, batch_id)
        assert batch["request_counts"] == {"total": 600, "completed": 600, "failed": 0}, batch
        answers = await lines_of(client, batch["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(600)]
    assert len({start.job for start in formation.ledger.starts()}) == 600
