"""Every answer of OpenAI's addresses, each event of a stream too, against the official SDK's types taken strictly, and
against OpenAI's published schema.

The schema's file is OpenAI's and is not kept here: JARVIS_OPENAI_SCHEMA says where it lies (the YAML that OpenAI
publishes as openapi.yaml, version 2.3 or later). Without it that half is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai.types
import openai.types.audio
import openai.types.chat
import openai.types.responses
import pydantic
import pytest
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from ops.bench.voice import voice, wav
from tests.openai.test_sdk import until

FILE = os.environ.get("JARVIS_OPENAI_SCHEMA")
SPOKEN = ("spoken.wav", wav(voice(4)))
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is a lease?"}], "max_tokens": 12}
RESPONSE = {"model": "demo", "input": "What is a lease?", "max_output_tokens": 12}
NAMED = {"name": "set_lane", "parameters": {"type": "object", "properties": {"lane": {"enum": ["high", "low"]}}}}
TOOL = {"type": "function", "function": NAMED}
CALLED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "set_lane"}}, "max_tokens": 100}
RESPONSE_CALLED = {
    "tools": [{"type": "function", "strict": True, **NAMED}],
    "tool_choice": {"type": "function", "name": "set_lane"},
    "max_output_tokens": 100,
}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}

Check = Callable[[str, Any], None]


#: What the official SDK has for a schema, where that has another name or is a union.
TYPES: dict[str, Any] = {
    "CreateChatCompletionResponse": openai.types.chat.ChatCompletion,
    "CreateChatCompletionStreamResponse": openai.types.chat.ChatCompletionChunk,
    "CreateCompletionResponse": openai.types.Completion,
    "CreateEmbeddingResponse": openai.types.CreateEmbeddingResponse,
    "CreateTranscriptionResponseJson": openai.types.audio.Transcription,
    "CreateTranscriptionResponseStreamEvent": openai.types.audio.TranscriptionStreamEvent,
    "CreateTranscriptionResponseVerboseJson": openai.types.audio.TranscriptionVerbose,
    "CreateTranslationResponseJson": openai.types.audio.Translation,
    "CreateTranslationResponseVerboseJson": openai.types.audio.TranslationVerbose,
    "Model": openai.types.Model,
    "OpenAIFile": openai.types.FileObject,
    "DeleteFileResponse": openai.types.FileDeleted,
    "Batch": openai.types.Batch,
    "Response": openai.types.responses.Response,
    "ResponseItemList": openai.types.responses.ResponseItemList,
    "ResponseStreamEvent": openai.types.responses.ResponseStreamEvent,
}


@pytest.fixture(scope="module", params=["the SDK's types", "OpenAI's schema"])
def valid(request: pytest.FixtureRequest) -> Check:
    """Fails with what is wrong, when a document is not what the schema of this name says."""
    if request.param == "the SDK's types":
        return _by_the_sdk
    if not FILE:
        pytest.skip("JARVIS_OPENAI_SCHEMA does not name OpenAI's openapi.yaml")
    return _by_the_schema(FILE)


def _by_the_sdk(name: str, document: Any) -> None:
    if name in TYPES:
        pydantic.TypeAdapter(TYPES[name]).validate_python(document, strict=True)


def _by_the_schema(file: str) -> Check:
    whole = yaml.load(Path(file).read_text(), Loader=yaml.CSafeLoader)
    schemas = {"components": {"schemas": _nullable(whole["components"]["schemas"])}}
    registry: Registry[Any] = Registry().with_resource("urn:openai", DRAFT202012.create_resource(schemas))

    def check(name: str, document: Any) -> None:
        schema = {"$ref": f"urn:openai#/components/schemas/{name}"}
        errors = list(jsonschema.Draft202012Validator(schema, registry=registry).iter_errors(document))
        deepest = [jsonschema.exceptions.best_match([error]) for error in errors]
        assert not errors, [f"{one.json_path}: {one.message[:300]}" for one in deepest if one]

    return check


def _nullable(schema: Any) -> Any:
    """The schema with 3.0's way to say that null is allowed put in 3.1's words."""
    if isinstance(schema, list):
        return [_nullable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {name: _nullable(value) for name, value in schema.items() if name != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest


def events(http: httpx.Client, path: str, **asked: Any) -> Iterator[Any]:
    """The data of each event of a stream, until its end."""
    with http.stream("POST", path, **asked) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def posted(http: httpx.Client, path: str, body: Any) -> Any:
    """The document that answers."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("more", [{}, CALLED, {"logprobs": True, "top_logprobs": 2}, {"n": 2, "temperature": 1}])
def test_chat_completions(http: httpx.Client, valid: Check, more: dict[str, Any]) -> None:
    valid("CreateChatCompletionResponse", posted(http, "/v1/chat/completions", {**CHAT, **more}))
    asked = {**CHAT, **more, "stream": True, "stream_options": {"include_usage": True}}
    for chunk in events(http, "/v1/chat/completions", json=asked):
        valid("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}])
def test_completions(http: httpx.Client, valid: Check, more: dict[str, Any]) -> None:
    asked = {"model": "demo", "prompt": "A lane", "max_tokens": 6, **more}
    valid("CreateCompletionResponse", posted(http, "/v1/completions", asked))
    for chunk in events(http, "/v1/completions", json={**asked, "stream": True}):
        # The schema describes whole answers only; OpenAI's own chunks have null here until the last one.
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        valid("CreateCompletionResponse", chunk)


def test_embeddings(http: httpx.Client, valid: Check) -> None:
    valid("CreateEmbeddingResponse", posted(http, "/v1/embeddings", {"model": "minilm", "input": ["A lane", "B"]}))


def test_models(http: httpx.Client, valid: Check) -> None:
    valid("ListModelsResponse", http.get("/v1/models").json())
    valid("Model", http.get("/v1/models/demo").json())


def test_audio(http: httpx.Client, valid: Check) -> None:
    def heard(path: str, **fields: str) -> Any:
        answer = http.post(path, data={"model": "ears", **fields}, files={"file": SPOKEN})
        assert answer.status_code == 200, answer.text
        return answer.json()

    valid("CreateTranscriptionResponseJson", heard("/v1/audio/transcriptions"))
    valid("CreateTranscriptionResponseVerboseJson", heard("/v1/audio/transcriptions", response_format="verbose_json"))
    valid("CreateTranslationResponseJson", heard("/v1/audio/translations"))
    valid("CreateTranslationResponseVerboseJson", heard("/v1/audio/translations", response_format="verbose_json"))
    form = {"data": {"model": "ears", "stream": "true"}, "files": {"file": SPOKEN}}
    for event in events(http, "/v1/audio/transcriptions", **form):
        valid("CreateTranscriptionResponseStreamEvent", event)


@pytest.mark.parametrize("more", [{}, RESPONSE_CALLED, LOGPROBS, {"instructions": "Be short.", "metadata": {"a": "b"}}])
def test_responses(http: httpx.Client, valid: Check, more: dict[str, Any]) -> None:
    made = posted(http, "/v1/responses", {**RESPONSE, **more})
    valid("Response", made)
    valid("Response", http.get(f"/v1/responses/{made['id']}").json())
    history = [{"role": "user", "content": "Why?"}, *made["output"]]
    history += [{"type": "function_call_output", "call_id": one["call_id"], "output": "done"} for one in history[2:]]
    gone_on = posted(http, "/v1/responses", {**RESPONSE, "input": history, "previous_response_id": made["id"]})
    valid("ResponseItemList", http.get(f"/v1/responses/{gone_on['id']}/input_items").json())
    for event in events(http, "/v1/responses", json={**RESPONSE, **more, "stream": True}):
        valid("ResponseStreamEvent", event)


def test_responses_in_the_background(http: httpx.Client, valid: Check) -> None:
    asked = {**RESPONSE, "model": "slow", "background": True}
    valid("Response", posted(http, "/v1/responses", asked))
    kinds = []
    for event in events(http, "/v1/responses", json={**asked, "stream": True}):
        valid("ResponseStreamEvent", event)
        kinds.append(event["type"])
    assert kinds[:2] == ["response.created", "response.queued"]
    left = posted(http, "/v1/responses", asked)
    valid("Response", http.post(f"/v1/responses/{left['id']}/cancel").json())
    with http.stream("GET", f"/v1/responses/{left['id']}?stream=true") as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    for line in lines:
        valid("ResponseStreamEvent", json.loads(line))


def test_files_and_batches(http: httpx.Client, valid: Check) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "a"}}
    wrong = {**line, "custom_id": "b", "body": {"model": "minilm", "input": []}}
    data = f"{json.dumps(line)}\n{json.dumps(wrong)}\n".encode()
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", data)}).json()
    valid("OpenAIFile", file)
    valid("OpenAIFile", http.get(f"/v1/files/{file['id']}").json())
    valid("ListFilesResponse", http.get("/v1/files").json())
    asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = posted(http, "/v1/batches", asked)
    valid("Batch", made)

    def ended() -> Any:
        batch = http.get(f"/v1/batches/{made['id']}").json()
        valid("Batch", batch)
        return batch if batch["status"] not in ("validating", "in_progress", "finalizing") else None

    until(ended, "the batch ends", 60)
    valid("ListBatchesResponse", http.get("/v1/batches").json())
    other = posted(http, "/v1/batches", asked)
    valid("Batch", http.post(f"/v1/batches/{other['id']}/cancel").json())
    valid("DeleteFileResponse", http.delete(f"/v1/files/{file['id']}").json())


def test_errors(http: httpx.Client, valid: Check) -> None:
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "model": "nobody"}),
        ("/v1/responses", {**RESPONSE, "temperature": 9}),
        ("/v1/responses", {**RESPONSE, "previous_response_id": "resp_unknown"}),
        ("/v1/embeddings", {"model": "minilm", "input": []}),
        ("/v1/moderations", {}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code in (400, 404)
        valid("ErrorResponse", answer.json())
