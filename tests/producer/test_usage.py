"""GET /v1/usage: what is asked and answered."""

from __future__ import annotations

import httpx
import pytest

from common.jobs import JobResult
from common.queue import Outcome
from producer.usage import UsageOut
from tests.producer.worker import PlayedWorker


async def test_usage_is_told_by_day_and_model_unless_asked_otherwise(
    client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    for user in ("ada", "ada", "bob"):
        body = {"kind": "generation", "model": "echo", "input": {"prompt": "Hi"}, "user": user}
        await client.post("/v1/jobs", json=body)
    for job in await worker.claim_many(3):
        await worker.commit(Outcome.done(job, job.seq, JobResult({}, {"prompt_tokens": 2, "completion_tokens": 3})))
    answer = (await client.get("/v1/usage")).json()
    UsageOut.model_validate(answer)
    assert answer["group_by"] == ["day", "model"]
    (row,) = answer["data"]
    assert (row["model"], row["api_key"], row["owner"]) == ("echo", None, None)
    assert (row["jobs"]["completed"], row["prompt_tokens"], row["completion_tokens"]) == (3, 6, 9)
    assert answer["total"] == row | {"day": None, "model": None}

    asked = {"group_by": "owner,api_key", "owner": "ada"}
    (row,) = (await client.get("/v1/usage", params=asked)).json()["data"]
    assert (row["day"], row["api_key"], row["owner"], row["jobs"]["completed"]) == (None, "", "ada", 2)
    empty = (await client.get("/v1/usage", params={"from": "2020-01-01", "to": "2020-01-31"})).json()
    assert (empty["data"], empty["total"]["prompt_tokens"]) == ([], 0)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"from": "2026-01-02", "to": "2026-01-01"}, "from"),
        ({"from": "2020-01-01", "to": "2026-01-01"}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"group_by": "colour"}, "group_by"),
        ({"owner": "a b"}, "owner"),
        ({"api_key": "jv_x_y"}, "api_key"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_question_is_refused_with_its_field(
    client: httpx.AsyncClient, asked: dict[str, str], field: str
) -> None:
    answer = await client.get("/v1/usage", params=asked)
    assert answer.status_code == 422
    assert answer.json()["field"] == field
