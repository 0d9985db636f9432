"""Whatever is sent to the web process, it answers in words, keeps its size and stays. Acceptance test 14.

The recordings of that test are in tests/unit/test_audio.py, bodies and fields one by one in tests/producer.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.faults.conftest import FULL
from tests.faults.formation import WEB, Formation
from tests.faults.sizes import rss

REQUESTS = 10_000 if FULL else 800
MIB = 2**20
JSON = {"content-type": "application/json", "prefer": "respond-async"}
TURN = {"role": "user", "content": "count"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/jobs": {"kind": "generation", "model": "chat", "input": {"prompt": "count"}, "params": {"max_tokens": 1}},
    "/v1/chat/completions": {"model": "chat", "messages": [TURN], "max_tokens": 1},
    "/v1/completions": {"model": "chat", "prompt": "count", "max_tokens": 1},
    "/v1/embeddings": {"model": "vectors", "input": "count"},
    "/v1/batches": {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "/v1/responses": {"model": "chat", "input": "count", "max_output_tokens": 1, "background": True},
    "/v1/webhook_endpoints": {"url": "https://example.org/hook", "name": "a", "event_types": ["response.completed"]},
    "/v1/audio/transcriptions": {"model": "ears", "response_format": "json"},
    "/v1/files": {"purpose": "batch"},
}
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/files")
JOB, FILE, BATCH = "/v1/jobs/{}", "/v1/files/{}", "/v1/batches/{}"
LOOKS = (
    "/v1/jobs", JOB, f"{JOB}/result", f"{JOB}/events", "/v1/models/{}", "/v1/workers", "/v1/queues", "/v1/parked",
    "/v1/files", FILE, f"{FILE}/content", "/v1/batches", BATCH, f"{BATCH}/events",
    "/v1/responses/{}", "/v1/responses/{}/input_items", "/v1/webhook_endpoints", "/v1/webhook_endpoints/{}",
)  # fmt: skip
FIELDS = """kind model input params priority user metadata delay_s run_at ttl_s messages prompt max_tokens stream n stop
    seed temperature response_format tools tool_choice logprobs service_tier encoding_format dimensions endpoint webhook
    regex input_file_id completion_window purpose language file""".split()
VALUES: list[Any] = [
    float("nan"), float("inf"), -1, 2**63, 10**6, 10**400, "", "\x00", "\ud800", "a" * 70_000, "(a+)+$",
    "../../etc/passwd", "job_0006fq3k9tma7w2xv5hc8n1re4", {"$ref": "#"}, {"type": "json_schema"}, [[[]]], None, True,
]  # fmt: skip
HOSTILE = st.sampled_from(VALUES)
JUNK = st.recursive(
    HOSTILE | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
POSTS = st.tuples(
    st.sampled_from(sorted(BODIES)), st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=3), st.binary(max_size=40)
)
QUERY = st.dictionaries(
    st.sampled_from(["after", "limit", "status", "wait", "starting_after", "order", "purpose"]),
    st.text(st.characters(codec="utf-8"), max_size=30) | st.integers().map(str),
    max_size=2,
)
GETS = st.tuples(st.sampled_from(LOOKS), st.text(st.characters(codec="utf-8"), max_size=40), QUERY)
MANY = hypothesis_settings(
    max_examples=REQUESTS // 2,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Heard:
    """What was answered, and how long the refusals took."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.statuses: dict[int, int] = {}
        self.refused_s: list[float] = []

    def post(self, path: str, changes: dict[str, Any], junk: bytes) -> None:
        """A body that is wrong in its fields, in its form or not at all."""
        body = {**BODIES[path], **changes}
        if path in FORMS:
            fields = {name: json.dumps(value) for name, value in body.items()}
            self.hear(path, self.client.build_request("POST", path, data=fields, files={"file": ("a", junk)}))
            return
        content = json.dumps(body).encode()  # writes NaN and lone surrogates too, as a careless client does
        if junk[:1] > b"\xf0":
            at = junk[0] % len(content)
            content = content[:at] + junk + content[at + len(junk) :]
        self.hear(path, self.client.build_request("POST", path, content=content, headers=JSON))

    def get(self, path: str, name: str, query: dict[str, str]) -> None:
        """An address of something that is not there."""
        self.hear(path, self.client.build_request("GET", path.format(quote(name, safe="") or "x"), params=query))

    def hear(self, path: str, request: httpx.Request) -> None:
        """Send it; whatever it is, the answer is one of words."""
        began = time.perf_counter()
        answer = self.client.send(request)
        took_s = time.perf_counter() - began
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (request.url, request.content[:2000], answer.text)
        if answer.status_code < 400:
            return
        self.refused_s.append(took_s)
        document = answer.json()
        if answer.headers["content-type"] == "application/problem+json":
            assert document["detail"]
            assert request.method != "POST" or document["field"], answer.text
        else:
            assert set(document["error"]) >= {"message", "type", "param", "code"}, (path, answer.text)
            assert document["error"]["message"]


@pytest.mark.timeout(1800 if FULL else 300)
async def test_14_thousands_of_hostile_requests_get_no_5xx_and_leave_the_web_process_as_it_was(
    formation: Formation,
) -> None:
    web = formation.start(*WEB)
    async with formation.client() as client:
        await formation.web_answers(client)
    heard = await asyncio.to_thread(_send, formation.port, web.pid)
    assert web.exits == []
    total = sum(heard.statuses.values())
    slow_s = statistics.quantiles(heard.refused_s, n=100)[98]
    print(f"{total} requests, {dict(sorted(heard.statuses.items()))}, refused in {1000 * slow_s:.0f} ms (p99)")
    assert total >= REQUESTS
    assert slow_s <= 0.2


def _send(port: int, pid: int) -> Heard:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        heard = Heard(client)
        for path in BODIES:  # what is loaded at the first use is no growth
            heard.post(path, {}, b"")
        before = rss(pid)
        MANY(given(asked=POSTS)(lambda asked: heard.post(*asked)))()
        MANY(given(asked=GETS)(lambda asked: heard.get(*asked)))()
        # Hypothesis stops earlier when it has seen all that there is.
        while sum(heard.statuses.values()) < REQUESTS:
            heard.get("/v1/jobs/{}", f"job_{len(heard.refused_s)}", {})
        after = rss(pid)
    assert before is not None
    assert after is not None
    assert after - before <= (8 + 64) * MIB, f"{before / MIB:.0f} MiB before, {after / MIB:.0f} after"
    return heard


async def test_14_a_gigabyte_without_a_length_and_a_gzip_bomb_are_cut_off_early(formation: Formation) -> None:
    web = formation.start(*WEB)
    sent = 0

    def gigabyte() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2**14):
            sent += 2**16
            yield b" " * 2**16

    bomb = gzip.compress(b" " * 50 * MIB)
    async with formation.client() as client:
        await formation.web_answers(client)
    before = rss(web.pid)

    def post(content: Any, headers: dict[str, str]) -> int:
        with httpx.Client(base_url=f"http://127.0.0.1:{formation.port}", timeout=30, trust_env=False) as client:
            return client.post("/v1/jobs", content=content, headers={**JSON, **headers}).status_code

    try:
        status = await asyncio.to_thread(post, gigabyte(), {})
    except (httpx.WriteError, httpx.ReadError):  # the connection was closed before the whole was sent
        status = 413
    assert (status, sent <= 64 * MIB) == (413, True)
    assert await asyncio.to_thread(post, bomb, {"content-encoding": "gzip"}) in (400, 415)
    after = rss(web.pid)
    assert before is not None
    assert after is not None
    assert after - before <= (8 + 64) * MIB
    assert web.exits == []


async def test_14_schemathesis_finds_no_server_error_in_what_the_document_promises(formation: Formation) -> None:
    web = formation.start(*WEB)
    async with formation.client() as client:
        await formation.web_answers(client)
    examples = str(200 if FULL else 3)
    command = ["run", f"http://127.0.0.1:{formation.port}/openapi.json", "--checks", "not_a_server_error"]
    command += [
        "--max-examples",
        examples,
        "--seed",
        "1",
        "--phases",
        "examples,fuzzing",
        "--no-color",
        "--warnings",
        "off",
    ]
    command += ["--request-timeout", "20", "--generation-database", "none", "--suppress-health-check", "all"]
    program = Path(sys.executable).parent / "schemathesis"
    process = await asyncio.create_subprocess_exec(
        program, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=formation.folder
    )
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told[-3000:]
    assert re.search(r"\d+ generated", told), told[-3000:]
    assert web.exits == []
