"""A key's limits at the edge: what is counted for a request, and what every answer says of them."""

from __future__ import annotations

import base64
import io
import re
import wave
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.api_keys import ApiKeys, Asked
from common.jobs import JobResult
from common.queue import Outcome
from producer.units import DEFAULT_MAX_TOKENS
from tests.producer.worker import PlayedWorker
from workers import answer as workers_answer

JOB = {"kind": "generation", "model": "echo", "input": {"prompt": "Hi"}, "params": {"max_tokens": 20}}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
#: Prompts for `words`, whose tokens are words.
WORDS = {"kind": "generation", "model": "words", "input": {"prompt": "one two three"}, "params": {"max_tokens": 5}}


class Caller:
    """Calls with one key."""

    def __init__(self, client: httpx.AsyncClient, text: str) -> None:
        self.client = client
        self.id = text[3:15]
        self.headers = {"Authorization": f"Bearer {text}"}

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Post JSON."""
        return await self.client.post(path, json=body, headers=self.headers | headers)

    async def job(self, body: dict[str, Any] = JOB, **headers: str) -> httpx.Response:
        """Submit a job."""
        return await self.post("/v1/jobs", body, **headers)

    async def left(self, what: str = "tokens") -> int:
        """What is left of the tightest such limit, as an answer that takes nothing of it says."""
        headers = (await self.job(JOB, **{"Idempotency-Key": "look"})).headers
        return int(headers[f"x-ratelimit-remaining-{what}"])


@pytest.fixture
def limited(client: httpx.AsyncClient, keys: ApiKeys) -> Any:
    """Make a key with limits, and who calls with it."""

    async def make(*limits: str, name: str = "ann", scopes: tuple[str, ...] = ("jobs",)) -> Caller:
        made = await keys.create(Asked(name=name, tier="custom", limits=limits, scopes=scopes), "test")
        assert made
        return Caller(client, made[1].text)

    return make


async def test_every_answer_to_a_submit_says_how_the_limits_stand(limited: Any) -> None:
    ann = await limited("requests=10/1h", "tokens=1000/1m")
    for number, (path, body, headers) in enumerate(
        [
            ("/v1/jobs", JOB, {}),
            ("/v1/jobs", [JOB], {}),
            ("/v1/chat/completions", CHAT, {"Prefer": "respond-async"}),
            ("/v1/responses", {"model": "echo", "input": "Hi", "background": True, "max_output_tokens": 20}, {}),
            ("/v1/completions", {"model": "echo", "prompt": "Hi", "max_tokens": 20}, {"Prefer": "respond-async"}),
        ]
    ):
        told = await ann.post(path, body, **headers)
        assert told.status_code in (200, 202), told.text
        assert told.headers["ratelimit-policy"] == (
            '"requests-3600s";q=10;w=3600, "tokens-60s";q=1000;w=60;jarvis-unit="tokens"'
        )
        left = 9 - number
        assert re.fullmatch(rf'"requests-3600s";r={left};t=\d+, "tokens-60s";r=\d+;t=\d+', told.headers["ratelimit"])
        assert told.headers["x-ratelimit-limit-requests"] == "10"
        assert told.headers["x-ratelimit-remaining-requests"] == str(left)
        assert re.fullmatch(r"(\d+h)?(\d+m)?[\d.]+s", told.headers["x-ratelimit-reset-requests"])
        assert told.headers["x-ratelimit-limit-tokens"] == "1000"
        assert re.fullmatch(r"[\d.]+m?s", told.headers["x-ratelimit-reset-tokens"])


async def test_who_has_no_limits_hears_of_none(limited: Any) -> None:
    told = (await (await limited()).job()).headers
    assert not [name for name in told if "ratelimit" in name]


async def test_a_used_up_limit_is_a_problem_that_names_it_and_says_when(limited: Any) -> None:
    ann = await limited("requests=2/1m,burst=1")
    assert (await ann.job()).status_code == 202
    refused = await ann.job()
    problem = refused.json()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["violated-policies"] == ["requests-60s"]
    assert "limit requests-60s is used up" in problem["detail"]
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["retry-after"] == "30"
    assert 29_000 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert '"requests-60s";r=0;t=30' in refused.headers["ratelimit"]


@pytest.mark.parametrize(
    ("limit", "code", "retry"),
    [
        ("requests=60/1m,burst=1", "rate_limit_exceeded", "true"),
        ("requests=1/1d", "insufficient_quota", "false"),
        ("tokens=10/1m", "insufficient_quota", "false"),
    ],
)
async def test_openai_paths_refuse_in_openais_shape(limited: Any, limit: str, code: str, retry: str) -> None:
    ann = await limited(limit)
    if limit.startswith("requests"):
        await ann.job()
    refused = await ann.post("/v1/chat/completions", CHAT)
    assert refused.status_code == 429
    assert (refused.json()["error"]["code"], refused.json()["error"]["type"]) == (code, "rate_limit_error")
    assert refused.headers["x-should-retry"] == retry
    assert ("retry-after" in refused.headers) == limit.startswith("requests")
    assert "x-ratelimit-limit-" + limit.partition("=")[0] in refused.headers


async def test_a_job_that_never_fits_is_told_what_it_needs_and_what_there_is(limited: Any) -> None:
    ann = await limited("tokens=20/1h")
    refused = await ann.job({**WORDS, "params": {"max_tokens": 12, "n": 2}})
    assert refused.status_code == 429
    assert "this needs 27 tokens, and limit tokens-3600s gives at most 20 at once" in refused.json()["detail"]
    assert "retry-after" not in refused.headers


async def test_of_a_list_each_job_counts_by_itself(limited: Any) -> None:
    ann = await limited("requests=120/1m,burst=3")
    answered = await ann.job([JOB] * 5)
    kinds = [entry["object"] for entry in answered.json()["data"]]
    assert kinds == ["job", "job", "job", "job.refused", "job.refused"]
    refusal = answered.json()["data"][3]["error"]
    assert (refusal["status"], refusal["violated-policies"]) == (429, ["requests-60s"])
    assert answered.headers["retry-after"] == "1"
    assert (await ann.job([JOB] * 2)).status_code == 429


async def test_a_replay_takes_nothing_and_a_wrong_request_neither(limited: Any) -> None:
    ann = await limited("requests=3/1h", "tokens=1000/1h")
    first = await ann.job(JOB, **{"Idempotency-Key": "a"})
    for _ in range(3):
        again = await ann.job(JOB, **{"Idempotency-Key": "a"})
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["x-ratelimit-remaining-requests"] == "2"
    assert (await ann.job({**JOB, "params": {"max_tokens": 0}})).status_code == 422
    assert (await ann.job({**JOB, "model": "nope"})).status_code == 404
    mismatch = await ann.job({**JOB, "params": {"max_tokens": 21}}, **{"Idempotency-Key": "a"})
    assert mismatch.status_code == 422
    assert await ann.left("requests") == 1  # the look is a job, once


@pytest.mark.parametrize(
    ("body", "units"),
    [
        (WORDS, 3 + 5),
        ({**WORDS, "params": {"max_tokens": 4, "n": 2}}, 3 + 2 * 4),
        ({**WORDS, "model": "terse"}, 3 + 5),
        ({"kind": "embedding", "model": "vectors", "input": {"texts": ["a b", "c"]}}, 3 + 8 + 1 + 8),
        (
            {"kind": "embedding", "model": "vectors", "input": {"texts": ["a"]}, "params": {"input_type": "query"}},
            len("query: a") + 8,
        ),
        ({"kind": "embedding", "model": "vectors", "input": {"texts": ["x" * 500] * 2}}, 2 * 16),
        ({"kind": "generation", "model": "echo", "input": {"prompt": "Hi"}}, 2 + 8 + DEFAULT_MAX_TOKENS),
    ],
)
async def test_what_a_job_needs_is_counted_by_its_prompt_and_its_parameters(
    app: FastAPI, limited: Any, body: dict[str, Any], units: int
) -> None:
    ann = await limited("tokens=1000000/1d")
    for _ in range(2):  # before it is known that the key has limits, and after
        answer = await ann.job(body)
        queue = app.state.edge.queue
        ticket = await queue.redis.hget(queue.keys.job(answer.json()["id"]), "ticket")
        assert f" n{units},{ann.id} " in ticket.decode()


def test_the_default_of_max_tokens_is_the_workers() -> None:
    assert DEFAULT_MAX_TOKENS == workers_answer.DEFAULT_MAX_TOKENS


async def test_a_chat_without_max_tokens_may_need_the_whole_context(limited: Any) -> None:
    ann = await limited("tokens=2000/1d")
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    told = await ann.post("/v1/chat/completions", body, Prefer="respond-async")
    assert told.headers["x-ratelimit-remaining-tokens"] == str(2000 - 1024)


async def test_a_recording_counts_by_its_header(limited: Any) -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(bytes(8_000 * 5))
    ann = await limited("audio_seconds=20/1h")
    body = {
        "kind": "transcription",
        "model": "ears",
        "input": {"audio": base64.b64encode(out.getvalue()).decode()},
    }
    assert '"audio_seconds-3600s";r=14' in (await ann.job(body)).headers["ratelimit"]


async def test_what_a_job_did_not_use_is_there_again_when_it_is_done(limited: Any, worker: PlayedWorker) -> None:
    ann = await limited("tokens=1000/1d")
    await ann.job()
    job = await worker.claim()
    before = await ann.left()
    result = JobResult({"text": "x", "finish_reason": "stop"}, {"prompt_tokens": 2, "completion_tokens": 3})
    await worker.commit(Outcome.done(job, job.seq, result))
    assert await ann.left() == before + 2 + 8 + 20 - 5


async def test_a_retry_is_a_request_like_any_other(limited: Any, worker: PlayedWorker) -> None:
    ann = await limited("requests=2/1h")
    job_id = (await ann.job()).json()["id"]
    await worker.fail(await worker.claim())
    again = await ann.post(f"/v1/jobs/{job_id}/retry", {})
    assert again.status_code == 202
    assert again.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await ann.post(f"/v1/jobs/{job_id}/retry", {})).status_code == 202  # the same job
    assert (await ann.job()).status_code == 429


async def test_usage_is_ones_own_and_an_admins_everybodys(limited: Any, worker: PlayedWorker) -> None:
    ann, bob = await limited(name="ann"), await limited(name="bob")
    root = await limited(name="root", scopes=("admin",))
    for caller in (ann, bob, bob):
        await caller.job()
    for job in await worker.claim_many(3):
        await worker.finish(job)

    async def told(caller: Caller, **asked: str) -> list[tuple[str, str, int]]:
        answer = await caller.client.get(
            "/v1/usage", params={"group_by": "owner,api_key"} | asked, headers=caller.headers
        )
        if answer.status_code != 200:
            return [(answer.json()["field"], "", answer.status_code)]
        return [(row["owner"], row["api_key"], row["jobs"]["completed"]) for row in answer.json()["data"]]

    assert await told(ann) == await told(root, owner="ann") == [("ann", ann.id, 1)]
    assert await told(bob) == await told(root, api_key=bob.id) == [("bob", bob.id, 2)]
    assert sorted(await told(root)) == [("ann", ann.id, 1), ("bob", bob.id, 2)]
    assert await told(ann, owner="bob") == [("owner", "", 403)]
    assert await told(ann, api_key=bob.id) == []


async def test_refusals_are_counted_by_limit_and_name_nobody(limited: Any) -> None:
    ann, root = await limited("requests=1/1h"), await limited(name="root", scopes=("admin",))
    for _ in range(3):
        await ann.job()
    text = (await root.client.get("/metrics", headers=root.headers)).text
    assert 'jarvis_limit_refusals_total{limit="requests-3600s",queue="generation:echo"} 2.0' in text
    assert ann.id not in text
