"""The official SDK against a running stack with real engines: what it reads, streams and raises."""

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a lease?"}]


def until(done: Any, what: str, limit_s: float = 10) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"demo", "slow", "minilm", "ears"}
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_a_chat_completion_is_a_job_that_ended(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=40)
    choice = made.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert made.usage is not None
    assert made.usage.completion_tokens <= 40
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    job = http.get(f"/v1/jobs/job_{made.id.removeprefix('chatcmpl-')}").json()
    assert job["status"] == "completed"
    assert job["created_at"] // 1 == made.created
    assert http.get(job["links"]["result"]).json()["output"]["text"] == choice.message.content


def test_the_chunks_of_a_stream_are_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=60)
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="demo", messages=ASKED, max_tokens=60, stream=True, stream_options=options)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert len([delta for delta in deltas if delta.content]) > 1, "it came in pieces"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_max_tokens_an_answer_has_all_the_room_of_its_model(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="slow", messages=ASKED)
    assert made.usage is not None
    assert made.usage.completion_tokens == 300, "more than a job's own default of 256"


def test_the_fields_that_sdks_send_back_and_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=8)
    history: Any = [
        {"role": "developer", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a lane?"}],
            "name": "me",
        },
        first.choices[0].message,
        {"role": "user", "content": "And?"},
    ]
    made = client.chat.completions.create(
        model="demo",
        messages=history,
        max_completion_tokens=8,
        store=True,
        parallel_tool_calls=False,
        prompt_cache_key="k",
        safety_identifier="s",
        user="Zoë from accounts",
        metadata={"order": "4711"},
        seed=-1,
        service_tier="flex",
    )
    assert made.usage is not None
    assert made.usage.completion_tokens <= 8
    assert made.service_tier == "flex"


def test_a_tier_is_a_lane_and_a_user_keeps_the_same_name(client: openai.OpenAI, http: httpx.Client) -> None:
    jobs = []
    for tier, user in (("priority", "zoë"), ("default", "zoë"), ("flex", "bob")):
        asked: Any = {"service_tier": tier}
        made = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=1, user=user, **asked)
        assert made.service_tier == tier
        jobs.append(http.get(f"/v1/jobs/job_{made.id.removeprefix('chatcmpl-')}").json())
    assert [job["priority"] for job in jobs] == ["high", "normal", "low"]
    assert jobs[0]["user"] == jobs[1]["user"] != jobs[2]["user"] == "bob"


class Ticket(BaseModel):
    """What an answer is to be."""

    priority: Literal["high", "normal", "low"]
    urgent: bool


def test_a_structured_answer_is_parsed_by_the_sdk(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(model="demo", messages=ASKED, response_format=Ticket, max_tokens=60)
    ticket = made.choices[0].message.parsed
    assert isinstance(ticket, Ticket)


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "set_priority",
            "parameters": {
                "type": "object",
                "properties": {"lane": {"enum": ["high", "low"]}},
                "required": ["lane"],
                "additionalProperties": False,
            },
        },
    }
]


def test_a_named_tool_is_called_whole_and_streamed(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "set_priority"}}
    asked: Any = {"model": "demo", "messages": ASKED, "tools": TOOLS, "tool_choice": named, "max_tokens": 200}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason in ("stop", "tool_calls")
    [call] = choice.message.tool_calls
    assert call.function.name == "set_priority"
    assert json.loads(call.function.arguments)["lane"] in ("high", "low")

    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls is not None
    assert final.tool_calls[0].function.arguments == call.function.arguments

    history = [*ASKED, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    answered = client.chat.completions.create(**{**asked, "messages": history, "tool_choice": "none", "max_tokens": 8})
    assert answered.choices[0].message.content is not None


def test_log_probabilities_are_told_for_each_token(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": ASKED, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    made = client.chat.completions.create(**asked)
    told = made.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert made.usage is not None
    assert len(told.content) == made.usage.completion_tokens
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in told.content)
    streamed = [
        one
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for one in choice.logprobs.content or []
    ]
    assert [one.token for one in streamed] == [one.token for one in told.content]


def test_several_answers_come_as_choices(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": ASKED, "max_tokens": 6, "n": 3, "temperature": 1, "seed": 5}
    made = client.chat.completions.create(**asked)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in made.choices]


def test_completions_of_several_prompts_come_in_their_order(client: openai.OpenAI) -> None:
    each = [
        client.completions.create(model="demo", prompt=prompt, max_tokens=12).choices[0].text
        for prompt in ("A lane", "A lease")
    ]
    made = client.completions.create(model="demo", prompt=["A lane", "A lease"], max_tokens=12)
    assert [choice.text for choice in made.choices] == each
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.usage is not None
    assert made.usage.completion_tokens <= 24
    streamed = client.completions.create(model="demo", prompt="A lane", max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == each[0]


def test_embeddings_are_the_same_as_numbers_and_as_the_sdks_base64(client: openai.OpenAI) -> None:
    texts = ["A job is durable.", "Cats sleep."]
    made = client.embeddings.create(model="minilm", input=texts)  # the SDK asks for base64 and decodes it
    numbers = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    coded: Any = client.embeddings.with_raw_response.create(model="minilm", input=texts, encoding_format="base64")
    assert [one.embedding for one in made.data] == [one.embedding for one in numbers.data]
    assert len(made.data[0].embedding) == 384
    plain = coded.http_response.json()["data"][1]["embedding"]
    assert list(struct.unpack("<384f", base64.b64decode(plain))) == pytest.approx(numbers.data[1].embedding, abs=1e-7)
    assert [one.index for one in made.data] == [0, 1]
    assert made.usage.prompt_tokens == made.usage.total_tokens > 0


@pytest.mark.parametrize(
    ("wrong", "param", "error"),
    [
        ({"model": "nobody"}, "model", openai.NotFoundError),
        ({"messages": []}, "messages", openai.BadRequestError),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", openai.BadRequestError),
        ({"temperature": 9}, "temperature", openai.BadRequestError),
        ({"max_tokens": 100_000}, "max_tokens", openai.BadRequestError),
        ({"logit_bias": {"1": 5}}, "logit_bias", openai.BadRequestError),
        ({"extra_body": {"nonsense": 1}}, "nonsense", openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages", openai.BadRequestError),
    ],
)
def test_what_is_wrong_is_raised_as_the_sdk_raises_it(
    client: openai.OpenAI, http: httpx.Client, wrong: dict[str, Any], param: str, error: type[openai.APIStatusError]
) -> None:
    before = http.get("/v1/jobs?limit=1").json()["data"][0]["id"]
    asked: Any = {"model": "demo", "messages": ASKED, **wrong}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id
    assert http.get("/v1/jobs?limit=1").json()["data"][0]["id"] == before, "nothing was accepted"


def test_tokens_and_empty_inputs_are_refused_by_name(client: openai.OpenAI) -> None:
    for wrong in ([1, 2, 3], [[1], [2]], [], ""):
        asked: Any = wrong
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="minilm", input=asked)
        assert str(caught.value.param).startswith("input")


def test_a_caller_that_goes_takes_its_job_with_it(http: httpx.Client) -> None:
    body = {"model": "slow", "messages": ASKED, "user": "leaver"}
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
        next(line for line in stream.iter_lines() if '"content":"' in line)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=0.5)

    def both_gone() -> bool:
        jobs = http.get("/v1/jobs?user=leaver").json()["data"]
        return [job["status"] for job in jobs] == ["cancelled", "cancelled"]

    until(both_gone, "both jobs are cancelled")


def test_a_caller_with_a_key_that_goes_finds_its_job_again(http: httpx.Client) -> None:
    body = {"model": "slow", "messages": ASKED, "user": "returner", "max_tokens": 60}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "again"}, timeout=0.3)
    made = http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "again"}).json()
    jobs = http.get("/v1/jobs?user=returner").json()["data"]
    assert [job["id"].removeprefix("job_") for job in jobs] == [made["id"].removeprefix("chatcmpl-")]
    assert jobs[0]["claims"] == 1


def test_any_call_can_be_left_as_a_durable_job(http: httpx.Client) -> None:
    for path, body in (
        ("/v1/chat/completions", {"model": "demo", "messages": ASKED, "max_tokens": 4}),
        ("/v1/completions", {"model": "demo", "prompt": "A lane", "max_tokens": 4}),
        ("/v1/embeddings", {"model": "minilm", "input": "A lane"}),
    ):
        answer = http.post(path, json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        assert int(answer.headers["retry-after"]) > 0
        assert http.get(answer.headers["location"], params={"wait": 30}).json()["status"] == "completed"


def test_a_job_that_somebody_cancels_is_an_error_that_is_not_retried(client: openai.OpenAI, http: httpx.Client) -> None:
    stream = client.chat.completions.create(model="slow", messages=ASKED, stream=True)
    job = f"/v1/jobs/job_{next(stream).id.removeprefix('chatcmpl-')}"
    assert http.post(f"{job}/cancel").json()["status"] == "cancelled"
    with pytest.raises(openai.APIError, match="cancel"):
        list(stream)


def test_addresses_of_openai_that_are_not_here_answer_in_its_shape(http: httpx.Client) -> None:
    for path, why in {
        "/v1/audio/speech": "an engine for it",
        "/v1/rerank": "an engine for it",
        "/v1/vector_stores": "their engine",
        "/v1/images/generations": "makes images",
        "/v1/moderations": "judges texts",
    }.items():
        answer = http.post(path, json={})
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert why in error["message"]
