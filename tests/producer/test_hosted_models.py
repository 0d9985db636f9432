"""The edge of hosted models: what their upstream does not know is refused, and their cost is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.jobs import JobResult
from common.queue import Outcome
from tests.producer.worker import PlayedWorker

HOSTED = """
[models.{alias}]
kind = "generation"
engine = "openai"
weights = "qwen2.5:7b"
max_model_len = 64
options = {{ base_url = "http://127.0.0.1:1/v1", extensions = {extensions} }}
"""
CATALOGUE = (
    """
[models.echo]
kind = "generation"
engine = "fake"
max_model_len = 1024
fallback = ["wide", "strict"]

[models.free]
kind = "generation"
engine = "fake"
max_model_len = 1024
fallback = ["wide"]
"""
    + HOSTED.format(alias="strict", extensions="false")
    + HOSTED.format(alias="wide", extensions="true")
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`echo` falls back to `strict`, which knows only OpenAI's parameters; `free` to `wide`, which knows all."""
    path = tmp_path_factory.mktemp("hosted") / "models.toml"
    path.write_text(CATALOGUE)
    return path


def job(model: str, prompt: str = "Say it.", **params: Any) -> dict[str, Any]:
    return {"kind": "generation", "model": model, "input": {"prompt": prompt}, "params": params}


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (job("strict", top_k=4), "params.top_k", "nothing for the model strict: its upstream has none"),
        (job("echo", top_k=4), "params.top_k", "nothing for the model echo: its fallback strict has none"),
        (job("echo", max_tokens=100), "params.max_tokens", "1 to 63 for the model wide"),
        (job("echo", "x" * 9000), "input.prompt", "at most 63 tokens for the model wide"),
        (job("free", max_tokens=100), "params.max_tokens", "1 to 63 for the model wide"),
    ],
)
async def test_what_a_model_of_the_chain_cannot_do_is_refused_by_its_field(
    client: httpx.AsyncClient, body: dict[str, Any], field: str, said: str
) -> None:
    response = await client.post("/v1/jobs", json=body)
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert said in response.json()["detail"]


@pytest.mark.parametrize("body", [job("wide", top_k=4), job("free", top_k=4), job("echo", temperature=0, stop="x")])
async def test_what_all_of_the_chain_can_do_is_accepted(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/v1/jobs", json=body)).status_code == 202


async def test_the_record_says_who_ran_it_and_metrics_what_it_cost(
    app: FastAPI, client: httpx.AsyncClient, worker: PlayedWorker
) -> None:
    posted = (await client.post("/v1/jobs", json=job("echo"))).json()
    assert posted["served_by"] is None
    (claimed,) = await worker.queue.help("generation:echo", "w@wide", 1, 1, 30, ())
    usage: dict[str, int | str] = {"total_tokens": 3, "cost_micros": 1_500_000, "cost_currency": "EUR"}
    await worker.commit(Outcome.done(claimed, claimed.seq, JobResult({"text": "it"}, usage)))
    record = (await client.get(f"/v1/jobs/{posted['id']}")).json()
    assert (record["model"], record["served_by"], record["usage"]) == ("echo", "wide", usage)
    metrics = (await client.get("/metrics")).text
    assert 'jarvis_cost_total{currency="EUR",model="wide",queue="generation:echo"} 1.5' in metrics
