"""/openapi.json says everything; and whatever is sent, no answer is a 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.producer.test_refusals import problem_of
from tests.producer.test_submit import EMBEDDING, GENERATION

Operation = tuple[str, str, dict[str, Any]]


async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    found: dict[str, Any] = response.json()
    return found


def operations(document: dict[str, Any]) -> list[Operation]:
    return [(path, method, op) for path, item in document["paths"].items() for method, op in item.items()]


async def test_every_route_of_the_design_is_there(client: httpx.AsyncClient) -> None:
    found = {f"{method.upper()} {path}" for path, method, _ in operations(await document(client))}
    assert found == {
        "POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/result",
        "GET /v1/jobs/{job_id}/events", "POST /v1/jobs/{job_id}/cancel", "POST /v1/jobs/{job_id}/retry",
        "GET /v1/workers", "GET /v1/queues", "GET /v1/parked",
        "POST /v1/parked/{parked_id}/replay", "GET /v1/models", "GET /v1/usage", "GET /healthz",
        "GET /readyz", "GET /metrics", "GET /v1/webhook_deliveries", "GET /v1/webhook_deliveries/{delivery_id}",
        "POST /v1/webhook_deliveries/{delivery_id}/redeliver",
        "POST /v1/admin/keys", "GET /v1/admin/keys", "GET /v1/admin/keys/{key_id}",
        "POST /v1/admin/keys/{key_id}/rotate", "POST /v1/admin/keys/{key_id}/revoke",
        "PUT /v1/admin/keys/{key_id}/limits", "GET /v1/admin/audit",
    }  # fmt: skip


async def test_every_operation_says_what_it_does_and_how_it_fails(client: httpx.AsyncClient) -> None:
    for path, method, operation in operations(await document(client)):
        assert operation["summary"], path
        assert operation["description"], path
        assert all(answer["description"] for answer in operation["responses"].values())
        if path not in ("/healthz", "/v1/models"):
            assert "503" in operation["responses"], f"{method} {path}"
        if "{" in path:
            assert "404" in operation["responses"], f"{method} {path}"


async def test_every_field_of_a_request_is_described(client: httpx.AsyncClient) -> None:
    schemas = (await document(client))["components"]["schemas"]
    plain = {"kind", "input", "params", "role", "content"}  # explained by their type
    names = [f"{kind}{part}" for kind in ("Generation", "Embedding", "Transcription") for part in ("Request", "Input")]
    for name in (*names, "GenerationParams", "TranscriptionParams"):
        for field, schema in schemas[name]["properties"].items():
            assert field in plain or schema.get("description"), f"{name}.{field}"
        assert schemas[name]["additionalProperties"] is False
    assert schemas["GenerationRequest"]["examples"]


async def test_no_reference_of_the_document_leads_nowhere(client: httpx.AsyncClient) -> None:
    found = await document(client)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [ref for inner in value.values() for ref in references(inner)]
        return [ref for inner in value for ref in references(inner)] if isinstance(value, list) else []

    for reference in references(found):
        place: Any = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


async def test_the_examples_of_the_document_are_accepted(client: httpx.AsyncClient) -> None:
    schemas = (await document(client))["components"]["schemas"]
    models = {"generation": "echo", "embedding": "vectors"}
    for name in ("GenerationRequest", "EmbeddingRequest"):
        for example in schemas[name]["examples"]:
            sent = {**example, "model": models[example["kind"]]}
            assert (await client.post("/v1/jobs", json=sent)).status_code == 202


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = [
    *GENERATION,
    "params",
    "user",
    "priority",
    "metadata",
    "delay_s",
    "run_at",
    "ttl_s",
    "timeout_s",
    "max_attempts",
]
PARAMS = "max_tokens temperature top_p top_k min_p seed stop presence_penalty repetition_penalty n".split()


@given(
    base=st.sampled_from([GENERATION, EMBEDDING]),
    changes=st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=3),
    params=st.dictionaries(st.sampled_from(PARAMS), JUNK, max_size=2),
)
@hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_whatever_is_sent_is_accepted_or_named(
    app: FastAPI, base: dict[str, Any], changes: dict[str, Any], params: dict[str, Any]
) -> None:
    body = {**base, "params": params, **changes}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/jobs", content=_json(body), headers={"content-type": "application/json"})
    if response.status_code != 202:
        assert 400 <= response.status_code < 500, (body, response.text)
        assert problem_of(response)["field"]


@given(body=st.binary(max_size=200))
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_are_refused_in_words(app: FastAPI, body: bytes) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert problem_of(response)["field"]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()  # writes NaN and lone surrogates too, as a careless client does
