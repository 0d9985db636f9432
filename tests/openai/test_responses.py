"""The official SDK's `responses` against a running stack with real engines: made, streamed, left, found, gone on."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.openai.test_sdk import until

ASKED = "What is a lease?"


class Ticket(BaseModel):
    """What an answer is to be."""

    priority: Literal["high", "normal", "low"]
    urgent: bool


TOOL: Any = {
    "type": "function",
    "name": "set_priority",
    "description": "Put a job into a lane.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"lane": {"enum": ["high", "low"]}},
        "required": ["lane"],
        "additionalProperties": False,
    },
}


def answered_in_time(client: openai.OpenAI, response_id: str) -> Any:
    """The response once it has ended, by polling as OpenAI's guide has it."""

    def ended() -> Any:
        found = client.responses.retrieve(response_id)
        return None if found.status in ("queued", "in_progress") else found

    return until(ended, f"{response_id} ends", 30)


def test_a_response_is_a_job_that_can_be_asked_for_again(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.responses.create(
        model="demo", input=ASKED, instructions="Be short.", max_output_tokens=20, metadata={"order": "4711"}
    )
    chat = client.chat.completions.create(
        model="demo",
        max_tokens=20,
        messages=[{"role": "system", "content": "Be short."}, {"role": "user", "content": ASKED}],
    )
    assert made.output_text == chat.choices[0].message.content
    assert made.status in ("completed", "incomplete")
    assert (made.status == "incomplete") == (chat.choices[0].finish_reason == "length")
    assert made.usage is not None
    assert made.usage.output_tokens <= 20
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert (made.instructions, made.metadata, made.max_output_tokens) == ("Be short.", {"order": "4711"}, 20)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    job = http.get(f"/v1/jobs/job_{made.id.removeprefix('resp_')}").json()
    assert job["metadata"] == {"order": "4711"}


def test_a_structured_response_is_parsed_by_the_sdk(client: openai.OpenAI) -> None:
    made = client.responses.parse(model="demo", input=ASKED, text_format=Ticket, max_output_tokens=60)
    assert isinstance(made.output_parsed, Ticket)
    loose: Any = {"format": {"type": "json_object"}}
    made_loose = client.responses.create(model="demo", input=ASKED, text=loose, max_output_tokens=100)
    assert made_loose.status == "incomplete" or isinstance(json.loads(made_loose.output_text), dict)


def test_a_function_is_called_answered_and_gone_on_from(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "tools": [TOOL], "max_output_tokens": 200}
    named: Any = {"type": "function", "name": "set_priority"}
    made = client.responses.create(input=ASKED, tool_choice=named, **asked)
    [call] = [item for item in made.output if item.type == "function_call"]
    assert json.loads(call.arguments)["lane"] in ("high", "low")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    told: Any = [{"role": "user", "content": ASKED}, *[item.to_dict() for item in made.output], output]
    by_hand = client.responses.create(input=told, tool_choice="none", **asked)
    by_id = client.responses.create(input=[output], previous_response_id=made.id, tool_choice="none", **asked)
    assert by_id.output_text == by_hand.output_text
    kinds = [item.type for item in client.responses.input_items.list(by_id.id, order="asc")]
    assert kinds == ["message", *[item.type for item in made.output], "function_call_output"]


def test_a_conversation_goes_on_without_being_sent_again(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input=ASKED, instructions="Be long.", max_output_tokens=12)
    second = client.responses.create(model="demo", input="And a lane?", previous_response_id=first.id, temperature=0)
    whole: Any = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And a lane?"},
    ]
    chat = client.chat.completions.create(model="demo", messages=whole)
    assert second.output_text == chat.choices[0].message.content, "the instructions are not carried over"
    assert second.previous_response_id == first.id
    client.responses.delete(first.id)
    third = client.responses.create(model="demo", input="Why?", previous_response_id=second.id, max_output_tokens=4)
    pages = client.responses.input_items.list(third.id, limit=2, order="asc")
    assert len(pages.data) == 2
    assert pages.has_next_page()
    items: list[Any] = list(pages)
    texts = [item.content[0].text for item in items]
    assert texts == [ASKED, first.output_text, "And a lane?", second.output_text, "Why?"], "of all pages"
    newest: Any = client.responses.input_items.list(third.id, limit=1).data[0]
    assert newest.content[0].text == "Why?"


def test_a_conversation_without_room_loses_its_oldest_turns_when_asked_to(client: openai.OpenAI) -> None:
    told: Any = [{"role": "user", "content": f"{n} " + "word " * 50} for n in range(9)] + [
        {"role": "user", "content": ASKED}
    ]
    asked: Any = {"model": "demo", "input": told, "max_output_tokens": 8}
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**asked)
    made = client.responses.create(**asked, truncation="auto", instructions="Be short.")
    assert made.output_text
    kept = client.responses.create(**{**asked, "input": told[-5:]}, instructions="Be short.")
    assert made.usage is not None
    assert kept.usage is not None
    assert made.usage.input_tokens >= kept.usage.input_tokens, "no more than needed"


def test_the_events_of_a_stream_make_up_the_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo", input=ASKED, max_output_tokens=40)
    events = list(client.responses.create(model="demo", input=ASKED, max_output_tokens=40, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{whole.status}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last: Any = events[-1]
    assert "".join(deltas) == last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage
    assert client.responses.retrieve(last.response.id).to_dict() == last.response.to_dict()


def test_the_sdks_own_stream_puts_calls_and_parsed_answers_together(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "name": "set_priority"}
    with client.responses.stream(model="demo", input=ASKED, tools=[TOOL], tool_choice=named) as stream:
        final = stream.get_final_response()
    [call] = [item for item in final.output if item.type == "function_call"]
    assert json.loads(call.arguments)["lane"] in ("high", "low")
    with client.responses.stream(model="demo", input=ASKED, text_format=Ticket) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Ticket)


def test_log_probabilities_are_told_with_the_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "input": ASKED, "max_output_tokens": 6, "top_logprobs": 2}
    asked["include"] = ["message.output_text.logprobs"]
    made = client.responses.create(**asked)
    told = made.output[0].content[0].logprobs
    assert len(told) == made.usage.output_tokens
    assert all(len(one.top_logprobs) == 2 for one in told)
    events = list(client.responses.create(**asked, stream=True))
    streamed = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.token for one in streamed] == [one.token for one in told]


def test_a_response_in_the_background_is_polled(client: openai.OpenAI) -> None:
    made = client.responses.create(model="slow", input=ASKED, background=True, max_output_tokens=50)
    assert made.status in ("queued", "in_progress")
    assert made.background
    assert not made.output
    done = answered_in_time(client, made.id)
    assert done.status == "incomplete"
    assert done.incomplete_details.reason == "max_output_tokens"
    assert len(done.output_text.split()) == 50


def test_a_stream_that_broke_is_taken_up_after_any_of_its_events(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="slow", input=ASKED, background=True, stream=True, max_output_tokens=60)
    first: Any = next(iter(stream))
    seen = [first]
    for event in stream:
        seen.append(event)
        if len(seen) == 20:
            break
    stream.close()
    rest = client.responses.retrieve(first.response.id, stream=True, starting_after=seen[-1].sequence_number)
    events = [*seen, *rest]
    assert [event.sequence_number for event in events] == list(range(len(events))), "none twice, none left out"
    assert events[1].type == "response.queued"
    whole = [event.to_dict() for event in client.responses.retrieve(first.response.id, stream=True)]
    assert [event.to_dict() for event in events] == whole, "word for word"
    for after in (0, 5, len(whole) - 2, len(whole) - 1):
        again = client.responses.retrieve(first.response.id, stream=True, starting_after=after)
        assert [event.to_dict() for event in again] == whole[after + 1 :]


def test_a_response_in_the_background_is_cancelled_once(client: openai.OpenAI) -> None:
    made = client.responses.create(model="slow", input=ASKED, background=True)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    events = list(client.responses.retrieve(made.id, stream=True))
    assert events[-1].type == "response.failed"
    done = client.responses.create(model="demo", input=ASKED, background=True, max_output_tokens=2)
    ended = answered_in_time(client, done.id)
    assert client.responses.cancel(done.id).to_dict() == ended.to_dict(), "what has ended stays as it is"


def test_only_a_response_in_the_background_can_be_cancelled(client: openai.OpenAI) -> None:
    made = client.responses.create(model="demo", input=ASKED, max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)


def test_a_deleted_response_is_gone_and_one_that_runs_stops(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.responses.create(model="slow", input=ASKED, background=True)
    stream = client.responses.retrieve(made.id, stream=True)
    next(event for event in stream if event.type == "response.output_text.delta")
    client.responses.delete(made.id)
    *_, last = stream
    assert last.type == "error"
    assert last.code == "not_found"
    for gone in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    assert http.get(f"/v1/jobs/job_{made.id.removeprefix('resp_')}").status_code == 404
    until(lambda: _running(http) == 0, "its worker is free")


def _running(http: httpx.Client) -> int:
    [queue] = [one for one in http.get("/v1/queues").json()["data"] if one["queue"] == "generation:slow"]
    return int(queue["in_progress"])


def test_what_is_not_to_be_stored_is_gone_when_it_is_told(client: openai.OpenAI, http: httpx.Client) -> None:
    made = client.responses.create(model="demo", input=ASKED, store=False, max_output_tokens=2)
    *_, last = client.responses.create(model="demo", input=ASKED, store=False, max_output_tokens=2, stream=True)
    streamed: Any = last
    both: list[Any] = [made, streamed.response]
    for response in both:
        assert response.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        assert http.get(f"/v1/jobs/job_{response.id.removeprefix('resp_')}").status_code == 404
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model="demo", input=ASKED, store=False, background=True)


def test_a_caller_that_goes_takes_its_response_with_it_but_not_one_in_the_background(http: httpx.Client) -> None:
    left = {"model": "slow", "input": ASKED, "user": "left", "stream": True}
    for more in ({}, {"background": True}):
        with http.stream("POST", "/v1/responses", json={**left, **more}) as stream:
            next(line for line in stream.iter_lines() if "output_text.delta" in line)

    def ended() -> Any:
        jobs = http.get("/v1/jobs?user=left").json()["data"]
        states = [job["status"] for job in jobs]
        return states if "in_progress" not in states else None

    assert until(ended, "both have ended") == ["completed", "cancelled"]


def test_the_same_key_is_the_same_response_and_any_call_can_be_left(http: httpx.Client) -> None:
    body = {"model": "demo", "input": [{"role": "user", "content": ASKED}], "max_output_tokens": 3}
    headers = {"Idempotency-Key": "one response"}
    first, second = (http.post("/v1/responses", json=body, headers=headers).json() for _ in range(2))
    assert first == second
    assert http.post("/v1/responses", json={**body, "store": False}, headers=headers).status_code == 422
    left = http.post("/v1/responses", json=body, headers={"Prefer": "respond-async"})
    assert left.status_code == 202
    assert http.get(left.headers["location"], params={"wait": 30}).json()["status"] == "completed"
    assert http.get(f"/v1/responses/resp_{left.json()['id'].removeprefix('job_')}").json()["object"] == "response"


@pytest.mark.parametrize(
    ("wrong", "param", "error"),
    [
        ({"model": "nobody"}, "model", openai.NotFoundError),
        ({"input": []}, "input", openai.BadRequestError),
        ({"input": "word " * 2000}, "input", openai.BadRequestError),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", openai.BadRequestError),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", openai.BadRequestError),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type", None),
        ({"max_output_tokens": 0}, "max_output_tokens", openai.BadRequestError),
        ({"max_output_tokens": 100_000}, "max_output_tokens", openai.BadRequestError),
        ({"temperature": 9}, "temperature", openai.BadRequestError),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", openai.BadRequestError),
        ({"tools": [{**TOOL, "name": "not a name"}]}, "tools[0].name", openai.BadRequestError),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice", openai.BadRequestError),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", openai.BadRequestError),
        ({"include": ["web_search_call.results"]}, "include[0]", openai.BadRequestError),
        ({"conversation": "conv_1"}, "conversation", openai.BadRequestError),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", openai.BadRequestError),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", openai.BadRequestError),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", openai.BadRequestError),
        ({"previous_response_id": "resp_unknown"}, "previous_response_id", openai.BadRequestError),
        ({"extra_body": {"nonsense": 1}}, "nonsense", openai.BadRequestError),
    ],
)
def test_what_is_wrong_with_a_response_is_named(
    client: openai.OpenAI, wrong: dict[str, Any], param: str, error: type[openai.APIStatusError] | None
) -> None:
    asked: Any = {"model": "demo", "input": ASKED, **wrong}
    with pytest.raises(error or openai.BadRequestError) as caught:
        client.responses.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_what_cannot_be_gone_on_from_is_said(client: openai.OpenAI) -> None:
    made = client.responses.create(model="slow", input=ASKED, background=True)
    client.responses.cancel(made.id)
    for response_id, code in (
        ("resp_unknown", "previous_response_not_found"),
        (made.id, "previous_response_not_found"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="demo", input=ASKED, previous_response_id=response_id)
        assert caught.value.code == code
    chat = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": ASKED}], max_tokens=1)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(f"resp_{chat.id.removeprefix('chatcmpl-')}")
