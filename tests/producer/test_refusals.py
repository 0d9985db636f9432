"""Bad input: a 4xx that names the field in words, at once, and nothing at all in Redis."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from producer.answers import ProblemOut
from tests.producer.test_submit import EMBEDDING, GENERATION

JSON = {"content-type": "application/json"}


def generation(**changes: Any) -> dict[str, Any]:
    return {**GENERATION, **changes}


def params(**given: Any) -> dict[str, Any]:
    return generation(params=given)


def words(count: int, max_tokens: int | None = None) -> dict[str, Any]:
    asked = {"kind": "generation", "model": "words", "input": {"prompt": "é " * count}}
    return asked | ({} if max_tokens is None else {"params": {"max_tokens": max_tokens}})


def schema(value: Any) -> dict[str, Any]:
    return {"json_schema": {"name": "x", "schema": value}}


def nested(levels: int) -> dict[str, Any]:
    return {"items": nested(levels - 1)} if levels else {}


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", **changes}}


def turns(*messages: Any) -> dict[str, Any]:
    return generation(input={"messages": list(messages)})


def picture(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


SCHEMA = "params.response_format.json_schema.schema"
TOOL = tool(parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}

FIELDS: list[tuple[Any, int, str]] = [
    (generation(kind="magic"), 422, "kind"),
    (generation(kind=7), 422, "kind"),
    ({"model": "echo"}, 422, "kind"),
    ({}, 422, "kind"),
    (generation(model="nope"), 404, "model"),
    (generation(model="vectors"), 404, "model"),
    (generation(model=""), 422, "model"),
    (generation(model=None), 422, "model"),
    (generation(n=1_000_000), 422, "n"),
    (generation(input=None), 422, "input"),
    (generation(input="text"), 422, "input"),
    (generation(input={}), 422, "input"),
    (generation(input={"prompt": "a", "messages": [{"role": "user", "content": "b"}]}), 422, "input"),
    (generation(input={"prompt": ""}), 422, "input.prompt"),
    (generation(input={"prompt": 5}), 422, "input.prompt"),
    (generation(input={"prompt": ["a"]}), 422, "input.prompt"),
    (generation(input={"prompt": "a", "texts": ["b"]}), 422, "input.texts"),
    (generation(input={"messages": []}), 422, "input.messages"),
    (generation(input={"messages": [{"role": "user"}]}), 422, "input.messages[0].content"),
    (generation(input={"messages": [{"role": "god", "content": "x"}]}), 422, "input.messages[0].role"),
    (params(max_tokens=0), 422, "params.max_tokens"),
    (params(max_tokens=-1), 422, "params.max_tokens"),
    (params(max_tokens=8, min_tokens=9), 422, "params.min_tokens"),
    (params(min_tokens=9), 422, "params.min_tokens"),
    (params(ignore_eos=1), 422, "params.ignore_eos"),
    (params(max_tokens=1024), 422, "params.max_tokens"),
    (params(max_tokens=2**63), 422, "params.max_tokens"),
    (params(max_tokens=2**4000), 422, "params.max_tokens"),
    (params(max_tokens=1.5), 422, "params.max_tokens"),
    (params(max_tokens="64"), 422, "params.max_tokens"),
    (params(max_tokens=True), 422, "params.max_tokens"),
    (params(temperature=2.1), 422, "params.temperature"),
    (params(temperature=-0.1), 422, "params.temperature"),
    (params(temperature=1e308), 422, "params.temperature"),
    (params(top_p=0), 422, "params.top_p"),
    (params(top_p=1.01), 422, "params.top_p"),
    (params(top_k=-2), 422, "params.top_k"),
    (params(min_p=2), 422, "params.min_p"),
    (params(presence_penalty=3), 422, "params.presence_penalty"),
    (params(frequency_penalty=-3), 422, "params.frequency_penalty"),
    (params(repetition_penalty=0), 422, "params.repetition_penalty"),
    (params(seed=-1), 422, "params.seed"),
    (params(seed=2**63), 422, "params.seed"),
    (params(stop=["x"] * 5), 422, "params.stop"),
    (params(stop="x" * 65), 422, "params.stop"),
    (params(stop=[""]), 422, "params.stop"),
    (params(n=9), 422, "params.n"),
    (params(n=2, temperature=0), 422, "params.n"),
    (params(top_logprobs=2), 422, "params.top_logprobs"),
    (params(logprobs=True, top_logprobs=21), 422, "params.top_logprobs"),
    (params(logprobs=3), 422, "params.logprobs"),
    (params(response_format={"type": "xml"}), 422, "params.response_format.type"),
    (params(response_format={"type": "json_schema"}), 422, "params.response_format.json_schema"),
    (params(response_format={"type": "json_object", **schema({})}), 422, "params.response_format.json_schema"),
    (params(response_format={"type": "json_schema", **schema({"type": "strange"})}), 422, SCHEMA),
    (params(response_format={"type": "json_schema", **schema({"$ref": "http://x/y"})}), 422, SCHEMA),
    (params(response_format={"type": "json_schema", **schema(nested(33))}), 422, SCHEMA),
    (params(response_format={"type": "json_schema", **schema({"enum": ["x" * 70_000]})}), 422, SCHEMA),
    (params(response_format={"type": "json_schema", **schema("object")}), 422, SCHEMA),
    (params(response_format={"type": "json_object"}, regex="a"), 422, "params.regex"),
    (params(regex="a", choice=["b"]), 422, "params.choice"),
    (params(choice=["b"], grammar="root ::= 1"), 422, "params.grammar"),
    (params(regex=""), 422, "params.regex"),
    (params(regex="a" * 4097), 422, "params.regex"),
    (params(choice=[]), 422, "params.choice"),
    (params(choice=["a", "a"]), 422, "params.choice"),
    (params(choice="a"), 422, "params.choice"),
    (params(choice=["a" * 1025]), 422, "params.choice"),
    (params(tools=[TOOL]), 422, "params.tools"),
    (params(tools=[]), 422, "params.tools"),
    (params(tools=[TOOL, TOOL]), 422, "params.tools"),
    (params(tools=[{"type": "function", "function": {"name": "a b"}}]), 422, "params.tools[0].function.name"),
    (params(tools=[tool(parameters={"type": 5})]), 422, "params.tools[0].function.parameters"),
    (params(tool_choice="auto"), 422, "params.tool_choice"),
    (params(tools=[TOOL], tool_choice="always"), 422, "params.tool_choice"),
    (params(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "b"}}), 422, "params.tool_choice"),
    (params(tools=[TOOL], regex="a"), 422, "params.tool_choice"),
    (turns({"role": "user", "content": [{"type": "text"}]}), 422, "input.messages[0].content"),
    (turns({"role": "user", "content": []}), 422, "input.messages[0].content"),
    (turns({"role": "user", "content": [{"type": "text", "text": "a"}] * 65}), 422, "input.messages[0].content"),
    (turns({"role": "system", "content": [{"type": "text", "text": "a"}]}), 422, "input.messages[0].content"),
    (turns(picture("https://example.com/a.png")), 422, "input.messages[0].content"),
    (turns(picture("data:image/svg+xml;base64,AAAA")), 422, "input.messages[0].content"),
    (turns(picture("data:image/png;base64,not base64")), 422, "input.messages[0].content"),
    (turns(picture("data:image/png;base64,AAAA")), 422, "input.messages[0].content"),  # echo has no vision
    (turns({"role": "tool", "content": "1", "tool_call_id": ""}), 422, "input.messages[0].tool_call_id"),
    (turns({"role": "user", "content": "1", "tool_call_id": "a"}), 422, "input.messages[0].tool_call_id"),
    (turns({"role": "user", "content": "1", "tool_calls": [CALL]}), 422, "input.messages[0].tool_calls"),
    (turns({"role": "assistant"}), 422, "input.messages[0].content"),
    (params(guided_regex="(a+)+$"), 422, "params.guided_regex"),
    (generation(params=[1]), 422, "params"),
    (words(16), 422, "input.prompt"),
    (words(10_000), 422, "input.prompt"),
    (words(10, max_tokens=7), 422, "params.max_tokens"),
    (generation(input={"prompt": "x" * 70_000}), 422, "input.prompt"),
    (generation(model="words", input={"messages": [{"role": "user", "content": "é " * 16}]}), 422, "input.messages"),
    ({**EMBEDDING, "input": {"texts": []}}, 422, "input.texts"),
    ({**EMBEDDING, "input": {"texts": "one"}}, 422, "input.texts"),
    ({**EMBEDDING, "input": {"texts": ["x"] * 2049}}, 422, "input.texts"),
    ({**EMBEDDING, "input": {"texts": ["ok", ""]}}, 422, "input.texts[1]"),
    ({**EMBEDDING, "input": {"texts": ["x" * 32_769]}}, 422, "input.texts[0]"),
    ({**EMBEDDING, "input": {"texts": [None]}}, 422, "input.texts[0]"),
    ({**EMBEDDING, "params": {"max_tokens": 5}}, 422, "params.max_tokens"),
    ({**EMBEDDING, "params": {"dimensions": 5}}, 422, "params.dimensions"),
    ({**EMBEDDING, "params": {"dimensions": 0}}, 422, "params.dimensions"),
    ({**EMBEDDING, "params": {"encoding_format": "hex"}}, 422, "params.encoding_format"),
    ({**EMBEDDING, "params": {"input_type": "title"}}, 422, "params.input_type"),
    ({**EMBEDDING, "params": {"truncate": "no"}}, 422, "params.truncate"),
    ({**EMBEDDING, "input": {"texts": ["a", "é" * 1100]}, "params": {"truncate": False}}, 422, "input.texts[1]"),
    (generation(user="a b"), 422, "user"),
    (generation(user="ada\n"), 422, "user"),
    (generation(user="a" * 65), 422, "user"),
    (generation(user=""), 422, "user"),
    (generation(user=None), 422, "user"),
    (generation(priority="urgent"), 422, "priority"),
    (generation(metadata={str(i): "" for i in range(17)}), 422, "metadata"),
    (generation(metadata={"k": 1}), 422, "metadata.k"),
    (generation(metadata={"k": "v" * 513}), 422, "metadata.k"),
    (generation(metadata={"k" * 65: "v"}), 422, "metadata"),
    (generation(delay_s=-1), 422, "delay_s"),
    (generation(delay_s=31 * 86_400), 422, "delay_s"),
    (generation(delay_s=1, run_at=1), 422, "body"),
    (generation(run_at="tomorrow"), 422, "run_at"),
    (generation(run_at="2027-01-01T00:00:00"), 422, "run_at"),
    (generation(run_at=1e300), 422, "run_at"),
    (generation(run_at=True), 422, "run_at"),
    (generation(ttl_s=0), 422, "ttl_s"),
    (generation(ttl_s=10, delay_s=20), 422, "ttl_s"),
    (generation(timeout_s=0), 422, "timeout_s"),
    (generation(max_attempts=0), 422, "max_attempts"),
    (generation(max_attempts=21), 422, "max_attempts"),
]  # fmt: skip

START = b'{"kind":"generation","model":"echo","input":{"prompt":'
CROWD = b",".join(b'"k%d":1' % n for n in range(5000))
TEXTS = b'{"kind":"embedding","model":"vectors","input":{"texts":'
BODIES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "body"),
    ("not JSON", b"kind=generation", 400, "body"),
    ("cut off", START, 400, "body"),
    ("two values", START + b'"x"}}{}', 400, "body"),
    ("a list", b"[]", 422, "body"),
    ("a string", b'"generation"', 422, "body"),
    ("null", b"null", 422, "body"),
    ("not UTF-8", START + b'"\xff"}}', 400, "body"),
    ("NaN", START + b'"x"},"params":{"temperature":NaN}}', 422, "params.temperature"),
    ("Infinity", START + b'"x"},"params":{"top_p":Infinity}}', 422, "params.top_p"),
    ("-Infinity", START + b'"x"},"delay_s":-Infinity}', 422, "delay_s"),
    ("1e999", START + b'"x"},"params":{"temperature":1e999}}', 422, "params.temperature"),
    ("a number of 5,000 digits", START + b'"x"},"params":{"seed":' + b"9" * 5000 + b"}}", 400, "body"),
    ("a lone surrogate", START + rb'"\ud800"}}', 422, "input.prompt"),
    ("a lone low surrogate", START + rb'"a\udc00b"}}', 422, "input.prompt"),
    ("an encoded surrogate", START + b'"\xed\xa0\x80"}}', 422, "input.prompt"),
    ("a surrogate in a name", START + rb'"x"},"metadata":{"\ud800":"v"}}', 422, "metadata"),
    ("a surrogate in a list", TEXTS + rb'["a","\udfff"]}}', 422, "input.texts[1]"),
    ("nested lists", START + b"[" * 40_000 + b"]" * 40_000 + b"}}", 400, "body"),
    ("nested objects", b'{"a":' * 15_000 + b"1" + b"}" * 15_000, 400, "body"),
    ("nesting without an end", b"[" * 100_000, 400, "body"),
    ("a crowd of fields", b"{" + CROWD + b"}", 422, "body"),
    ("a crowd in metadata", START + b'"x"},"metadata":{' + CROWD + b"}}", 422, "metadata"),
    ("a crowd in a message", b'{"input":{"messages":[{' + CROWD + b"}]}}", 422, "input.messages[0]"),
    ("500 levels", START + b"[" * 500 + b"]" * 500 + b"}}", 422, "input.prompt"),
    ("too large", b" " * 100_001, 413, "body"),
]  # fmt: skip


@pytest.fixture
async def untouched(app: FastAPI) -> AsyncIterator[None]:
    """Afterwards Redis holds nothing, not even a key of bookkeeping."""
    yield
    assert await app.state.edge.queue.redis.keys("*") == []


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """The problem document, checked for what every one of them has."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-should-retry"] in ("true", "false")
    document: dict[str, Any] = response.json()
    ProblemOut.model_validate(document)
    assert document["status"] == response.status_code
    return document


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("body", "status", "field"), FIELDS, ids=lambda value: json.dumps(value)[:60])
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, body: Any, status: int, field: str) -> None:
    started = time.perf_counter()
    response = await client.post("/v1/jobs", content=json.dumps(body), headers=JSON)
    assert time.perf_counter() - started < 1
    assert response.status_code == status, response.text
    problem = problem_of(response)
    assert problem["field"].startswith(field)
    assert problem["errors"][0]["field"] == problem["field"]
    assert len(problem["detail"]) < 600  # never a whole prompt


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("body", "status", "field"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_a_hostile_body_is_refused(client: httpx.AsyncClient, body: bytes, status: int, field: str) -> None:
    response = await client.post("/v1/jobs", content=body, headers=JSON)
    assert response.status_code == status, response.text
    assert problem_of(response)["field"] == field


@pytest.mark.usefixtures("untouched")
async def test_every_wrong_field_is_named_at_once(client: httpx.AsyncClient) -> None:
    body = generation(user="a b", n=1, params={"temperature": 3, "seed": -1})
    problem = problem_of(await client.post("/v1/jobs", json=body))
    fields = {entry["field"]: entry["value"] for entry in problem["errors"]}
    assert fields == {"user": "a b", "n": "1", "params.temperature": "3", "params.seed": "-1"}


@pytest.mark.usefixtures("untouched")
async def test_thousands_of_wrong_fields_make_a_short_answer(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={**EMBEDDING, "input": {"texts": [""] * 2048}})
    assert len(problem_of(response)["errors"]) == 20


@pytest.mark.usefixtures("untouched")
async def test_an_unknown_model_lists_the_known_ones(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post("/v1/jobs", json=generation(model="nope")))
    assert problem["known"] == ["echo", "words", "terse"]
    assert "echo, words, terse" in problem["detail"]


@pytest.mark.usefixtures("untouched")
async def test_a_prompt_that_is_too_long_is_refused_with_what_would_fit(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.post("/v1/jobs", json=words(16)))
    assert problem["errors"][0]["message"] == "allowed: at most 15 tokens for the model words"
    problem = problem_of(await client.post("/v1/jobs", json=words(10, max_tokens=7)))
    assert problem["errors"][0]["message"] == "allowed: 1 to 6: the prompt has 10 of the 16 tokens of the model words"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Encoding", "gzip"),
    ],
)
async def test_what_is_not_declared_as_plain_json_is_415(client: httpx.AsyncClient, name: str, value: str) -> None:
    headers = {**JSON, name.lower(): value}
    response = await client.post("/v1/jobs", content=json.dumps(GENERATION), headers=headers)
    assert response.status_code == 415
    assert problem_of(response)["field"] == name


@pytest.mark.usefixtures("untouched")
async def test_a_missing_content_type_is_415(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", content=json.dumps(GENERATION))
    assert (response.status_code, problem_of(response)["value"]) == (415, None)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=lost", "kind=x", "after=x", "after=0-0", "after=00-1", "foo=1"]
)
async def test_a_wrong_filter_is_named(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/v1/jobs?{query}")
    assert response.status_code == 422
    assert problem_of(response)["field"] == query.partition("=")[0]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("wait", ["-1", "soon", "nan", "inf"])
async def test_a_wrong_wait_is_named(client: httpx.AsyncClient, wait: str) -> None:
    response = await client.get(f"/v1/jobs/job_x?wait={wait}")
    assert (response.status_code, problem_of(response)["field"]) == (422, "wait")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/{id}"),
        ("GET", "/v1/jobs/{id}?wait=1"),
        ("GET", "/v1/jobs/{id}/result"),
        ("GET", "/v1/jobs/{id}/events"),
        ("POST", "/v1/jobs/{id}/cancel"),
        ("POST", "/v1/jobs/{id}/retry"),
        ("POST", "/v1/parked/{id}/replay"),
    ],
)
@pytest.mark.parametrize("job_id", ["job_00" + "0" * 22, "nonsense", "job_ff" + "0" * 22, "%00%ff", "x" * 500])
async def test_a_job_that_is_not_there_is_404(client: httpx.AsyncClient, method: str, path: str, job_id: str) -> None:
    response = await client.request(method, path.format(id=job_id))
    assert response.status_code == 404
    problem_of(response)


async def test_an_address_that_is_not_there_is_a_problem_too(client: httpx.AsyncClient) -> None:
    assert problem_of(await client.get("/v1/nothing"))["status"] == 404
    response = await client.delete("/v1/jobs")
    assert problem_of(response)["status"] == 405


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("key", ["", '""', '"open', "k" * 256, '"a"b"', "ü", "a\tb"])
async def test_a_malformed_idempotency_key_is_400(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post("/v1/jobs", json=GENERATION, headers=[(b"Idempotency-Key", key.encode())])
    assert response.status_code == 400
    assert problem_of(response)["field"] == "Idempotency-Key"
