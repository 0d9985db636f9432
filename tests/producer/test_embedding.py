"""Embedding at the edge: what a job may ask of its model, and how its vectors are read."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest

from common.jobs import JobResult
from common.queue import Outcome
from common.vectors import EncodingFormat, Vectors
from tests.producer.test_submit import EMBEDDING
from tests.producer.worker import PlayedWorker

NUMBERS = [0.1, -2.5, 3e-8, 4.0]
PARAMS = {"dimensions": 4, "encoding_format": "base64", "input_type": "query", "truncate": False, "normalize": True}


@pytest.fixture
def vectors_worker(worker: PlayedWorker) -> PlayedWorker:
    """A worker of the model `vectors`."""
    return PlayedWorker(worker.queue, "embedding:vectors")


async def output(client: httpx.AsyncClient, worker: PlayedWorker, data: bytes, encoding: EncodingFormat) -> Any:
    """What a reader gets of a result that a worker has stored as vectors of two numbers."""
    job_id = (await client.post("/v1/jobs", json=EMBEDDING)).json()["id"]
    job = await worker.claim()
    result = JobResult(
        {"dimensions": 2, "truncated": [{"index": 0, "tokens": 20}]}, {}, False, Vectors(data, 2, encoding)
    )
    await worker.commit(Outcome.done(job, job.seq, result))
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert response.status_code == 200
    return response.json()["output"]


async def test_parameters_that_the_catalogue_allows_reach_the_worker(
    client: httpx.AsyncClient, vectors_worker: PlayedWorker
) -> None:
    assert (await client.post("/v1/jobs", json={**EMBEDDING, "params": PARAMS})).status_code == 202
    assert (await vectors_worker.claim()).spec.params == PARAMS


async def test_vectors_are_read_as_numbers_or_as_base64_of_the_same_bytes(
    client: httpx.AsyncClient, vectors_worker: PlayedWorker
) -> None:
    data = struct.pack("<4f", *NUMBERS)
    numbers = await output(client, vectors_worker, data, "float")
    assert struct.pack("<4f", *numbers["embeddings"][0], *numbers["embeddings"][1]) == data
    assert (numbers["dimensions"], numbers["truncated"]) == (2, [{"index": 0, "tokens": 20}])
    texts = (await output(client, vectors_worker, data, "base64"))["embeddings"]
    assert [base64.b64decode(text) for text in texts] == [data[:8], data[8:]]


async def test_a_large_result_is_read_too(client: httpx.AsyncClient, vectors_worker: PlayedWorker) -> None:
    data = struct.pack("<20000f", *(n / 7 for n in range(20_000)))
    found = await output(client, vectors_worker, data, "float")
    assert struct.pack("<20000f", *(number for row in found["embeddings"] for number in row)) == data


@pytest.mark.parametrize(
    ("params", "allowed"),
    [({"dimensions": 5}, "allowed: 4, 8"), ({"input_type": "title"}, "allowed: query, passage")],
)
async def test_a_refusal_names_what_the_model_takes(
    client: httpx.AsyncClient, params: dict[str, Any], allowed: str
) -> None:
    problem = (await client.post("/v1/jobs", json={**EMBEDDING, "params": params})).json()
    assert allowed in problem["detail"]


async def test_a_text_that_must_not_be_cut_is_refused_with_its_tokens(client: httpx.AsyncClient) -> None:
    body = {**EMBEDDING, "input": {"texts": ["ok", "é" * 1100]}}
    assert (await client.post("/v1/jobs", json=body)).status_code == 202
    problem = (await client.post("/v1/jobs", json={**body, "params": {"truncate": False}})).json()
    assert "input.texts[1] is '17 tokens or more'; allowed: at most 16 tokens" in problem["detail"]
