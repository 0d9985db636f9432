"""What is no record and no request is told, and stops nobody else."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.batches import BatchAsked
from common.settings import Settings
from producer.batches.endpoints import Here
from producer.batches.lines import Checked, check
from producer.batches.runner import Runner
from tests.producer.batching import CHAT, Do, ended, jsonl, line, made, runner, settings, work

__all__ = ["runner", "settings", "work"]  # fixtures

GARBAGE = [b"\x80\x04cos\nsystem\n.", b"", b"{}", b"\xff\xff", b"[1]"]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_record_that_cannot_be_read_stops_nobody(
    client: httpx.AsyncClient, app: FastAPI, runner: Runner, work: dict[str, Do], garbage: bytes
) -> None:
    work["do"] = lambda job: "leave"
    broken = await made(client, jsonl(line(0)))
    redis, prefix = app.state.edge.queue.redis, "jarvis:{00}:"
    await redis.hset(f"{prefix}batch:{broken['id']}", "about", garbage)
    await redis.set(f"{prefix}file:{broken['input_file_id']}", garbage)
    work["do"] = lambda job: "finish"
    assert (await client.get(f"/v1/batches/{broken['id']}")).status_code == 404
    assert (await client.get(f"/v1/files/{broken['input_file_id']}/content")).status_code == 404
    whole = await made(client, jsonl(line(1)))
    assert (await ended(client, whole["id"]))["status"] == "completed"
    assert [one["id"] for one in (await client.get("/v1/batches")).json()["data"]] == [whole["id"]]
    assert broken["input_file_id"] not in [one["id"] for one in (await client.get("/v1/files")).json()["data"]]


HOSTILE = [
    b'{"custom_id": NaN}',
    b"\x00" * 100,
    b"\xff\xfe" * 100,
    b'{"custom_id": "\\ud800", "method": "POST", "url": "%s", "body": {}}' % CHAT.encode(),
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b"1e999",
    b"null",
    b'"text"',
    b'{"custom_id": "a", "method": "POST", "url": "%s", "body": {"model": "echo", "n": 1e400}}' % CHAT.encode(),
    jsonl(line(0, body={"model": "echo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2**63})),
    jsonl(line(0, body={"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 10**6})),
    jsonl(line(0, body={f"field{number}": 1 for number in range(1000)})),
    jsonl({f"field{number}": 1 for number in range(5000)}),
]


async def test_hostile_lines_fail_their_batch_and_nothing_else(client: httpx.AsyncClient, runner: Runner) -> None:
    for wrong in HOSTILE:
        over = await ended(client, (await made(client, wrong))["id"])
        assert over["status"] == "failed", wrong[:80]
        assert all(error["line"] == 1 and error["message"] for error in over["errors"]["data"]), wrong[:80]
        assert over["errors"]["data"][0]["code"] in (
            "invalid_json_line",
            "invalid_request",
            "unknown_parameter",
            "missing_required_parameter",
            "model_not_found",
        ), over["errors"]


@given(st.lists(st.binary(max_size=200) | st.text(max_size=50).map(str.encode), max_size=5).map(b"\n".join))
@hypothesis_settings(max_examples=200, deadline=None)
def test_whatever_is_in_a_file_is_told_line_by_line(held: bytes) -> None:
    """No Redis and no model is needed to refuse what is no request."""

    async def told() -> Checked:
        asked = BatchAsked(CHAT, "file-x", "@1/x", "24h", 60)
        return await check(asked, Here(None, HeldFiles(held), None), Settings(), lambda: None)  # type: ignore[arg-type]

    checked = asyncio.run(told())
    assert checked.errors
    assert not checked.plan
    lines: list[int | None] = [n for n, text in enumerate(held.split(b"\n"), start=1) if text.strip()]
    assert [*dict.fromkeys(error.line for error in checked.errors)] == (lines or [None])


class HeldFiles:
    """Stands in for Files and its blobs: one content, in memory."""

    def __init__(self, held: bytes) -> None:
        self.blobs = self
        self._held = held

    async def length(self, blob: str) -> int:
        """Of the content."""
        return len(self._held)

    async def read(self, blob: str, offset: int, count: int) -> bytes:
        """A stretch of it, in small pieces."""
        return self._held[offset : offset + min(count, 7)]
