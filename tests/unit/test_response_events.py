"""A response's events out of its job's, without a stack: reasoning, several calls, retries, what is missing."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from common.catalogue import Model
from common.errors import InvalidField
from common.jobs import JobError, JobEvent, JobRecord
from common.results import StoredResult
from common.states import State
from producer.openai.responses.answered import response
from producer.openai.responses.items import messages_of, named, read_items
from producer.openai.responses.streamed import EventsGone, ResponseEvents
from producer.openai.responses.truncated import fitting

FRONT: dict[str, Any] = {"response": {"background": True, "store": True}, "items": []}
CALL: dict[str, Any] = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}


def record(state: State, error: JobError | None = None, usage: Any = None) -> JobRecord:
    """A job's record."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("run_at", "worker", "queue_position", "waiting_for", "queue_ms", "run_ms", "gpu_ms", "retry_of", "started_at")
    )
    return JobRecord(
        id="job_00abc",
        kind="generation",
        model="demo",
        status=state,
        priority="normal",
        user="anonymous",
        created_at=1000.5,
        finished_at=None if state == State.IN_PROGRESS else 1002.5,
        claims=1,
        max_attempts=3,
        error=error,
        usage=usage,
        history=[],
        **nothing,
    )


def told(
    tokens: list[dict[str, Any]], output: dict[str, Any] | None, state: State = State.COMPLETED, after: int = -1
) -> list[dict[str, Any]]:
    """The events of a job that emitted these tokens, was given back once, and ended so."""
    states = iter(["queued", "in_progress", "queued", "in_progress"])
    first = [JobEvent(n, "state", {"status": next(states)}) for n in (1, 2)]
    events = [*first, *(JobEvent(3 + n, "token", data) for n, data in enumerate(tokens[:1]))]
    for status in states:
        events.append(JobEvent(len(events) + 1, "state", {"status": status}))
    events += [JobEvent(len(events) + 1 + n, "token", data) for n, data in enumerate(tokens[1:])]
    machine = ResponseEvents(record(State.IN_PROGRESS), FRONT, after)
    body = b"".join(map(machine.take, events))
    raw = None if output is None else msgspec.Raw(msgspec.json.encode(output))
    error = JobError("engine_died", "it died") if state == State.FAILED else None
    body += machine.end(StoredResult(record(state, error), raw))
    return [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n") if line.startswith("data: ")]


TOKENS: list[dict[str, Any]] = [
    {"text": "", "reasoning": "let me ", "ids": [1]},
    {"text": "I look. ", "reasoning": "see", "ids": [2]},
    {"text": "", "tool_calls": [CALL]},
    {"text": "", "tool_calls": [{"index": 0, "function": {"arguments": "{}"}}, {**CALL, "index": 1, "id": "call_2"}]},
    {"text": "Wait.", "tool_calls": [{"index": 1, "function": {"arguments": "[]"}}]},
]
OUTPUT: dict[str, Any] = {
    "text": "I look. Wait.",
    "finish_reason": "tool_calls",
    "reasoning": "let me see",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": "[]"}},
    ],
}


def test_reasoning_text_and_calls_are_items_whose_pieces_make_up_the_whole() -> None:
    events = told(TOKENS, OUTPUT)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["type"] for event in events].count("response.in_progress") == 1, "once, though it ran twice"
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert {event["type"]: event["response"]["status"] for event in events if "response" in event} == {
        "response.created": "queued",
        "response.queued": "queued",
        "response.in_progress": "in_progress",
        "response.completed": "completed",
    }
    for index, item in enumerate(items):
        own = [event for event in events if event.get("output_index") == index]
        deltas = "".join(event["delta"] for event in own if "delta" in event)
        assert deltas == (item["arguments"] if "arguments" in item else item["content"][0]["text"])
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1]["type"] == "response.output_item.done"
        assert own[-1]["item"] == item
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}


def test_the_whole_is_the_same_without_its_events() -> None:
    streamed = told(TOKENS, OUTPUT)[-1]["response"]
    raw = msgspec.Raw(msgspec.json.encode(OUTPUT))
    assert response(StoredResult(record(State.COMPLETED), raw), FRONT) == streamed


@pytest.mark.parametrize("after", range(-1, 30, 3))
def test_a_resumed_stream_is_the_rest_of_the_first(after: int) -> None:
    assert told(TOKENS, OUTPUT, after=after) == told(TOKENS, OUTPUT)[after + 1 :]


def test_an_empty_answer_is_an_empty_text() -> None:
    events = told([], {"text": "", "finish_reason": "stop"})
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    kinds = [event["type"] for event in events[3:]]
    assert kinds[0] == "response.output_item.added"
    assert kinds[-2:] == ["response.output_item.done", "response.completed"]


def test_an_answer_that_was_cut_in_its_reasoning_has_no_text() -> None:
    output = {"text": "", "finish_reason": "length", "reasoning": "let me see"}
    events = told(TOKENS[:1], output, State.INCOMPLETE)
    assert events[-1]["type"] == "response.incomplete"
    [item] = events[-1]["response"]["output"]
    assert (item["type"], item["status"]) == ("reasoning", "incomplete")


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
def test_what_ends_without_a_result_ends_the_stream_and_says_why(state: State) -> None:
    last = told(TOKENS, None, state)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["output"] == []
    if state == State.CANCELLED:
        assert (last["response"]["status"], last["response"]["error"]) == ("cancelled", None)
    else:
        assert last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert "died" in last["response"]["error"]["message"] or state == State.EXPIRED


def test_numbers_are_never_made_of_events_that_are_not_kept() -> None:
    machine = ResponseEvents(record(State.IN_PROGRESS), FRONT)
    machine.take(JobEvent(1, "state", {"status": "queued"}))
    with pytest.raises(EventsGone):
        machine.take(JobEvent(3, "token", {"text": "x"}))


def test_calls_stand_in_one_turn_with_what_was_said_before_them() -> None:
    items = read_items(
        [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}", "id": "fc_1", "async": None},
            {"type": "function_call", "call_id": "2", "name": "look", "arguments": "[]"},
            {"type": "function_call_output", "call_id": "1", "output": "here"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "there"}]},
        ]
    )
    turns = messages_of(items)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "tool"]
    assert turns[1]["content"] == "a\nb"
    assert turns[2]["content"] == "I look."
    assert [call["id"] for call in turns[2]["tool_calls"]] == ["1", "2"]
    assert [turn["content"] for turn in turns[3:]] == ["here", "there"]
    ids = [item["id"] for item in named(items, "x")]
    assert ids == ["msg_x_0", "msg_x_1", "rs_1", "msg_x_3", "fc_1", "fc_x_5", "fco_x_6", "fco_x_7"]


def test_an_image_is_a_part_of_a_users_turn_only() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    [turn] = messages_of(read_items([{"role": "user", "content": [{"type": "input_text", "text": "?"}, image]}]))
    assert turn["content"] == [
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    with pytest.raises(InvalidField, match=r"input\[0\]\.content\[0\]\.type is 'input_image'"):
        read_items([{"role": "system", "content": [image]}])
    with pytest.raises(InvalidField, match="file_id"):
        read_items([{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}])


class Letters:
    """Counts a letter as a token."""

    async def count(self, model: Any, texts: list[str]) -> int:
        """As `Prompts` does."""
        return sum(map(len, texts))


async def test_the_oldest_turns_go_first_and_a_tools_answer_goes_with_its_call() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "x" * 30}}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "s" * 10},
        {"role": "user", "content": "a" * 30},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "t"},
        {"role": "user", "content": "b" * 30},
    ]
    counted: Any = Letters()

    async def left(room: int) -> list[str]:
        model = Model(alias="m", kind="generation", engine="fake", weights="", max_model_len=room + 10, slots=1)
        return [turn["role"] for turn in await fitting(turns, model, 10, counted)]

    assert await left(200) == ["system", "user", "assistant", "tool", "user"]
    assert await left(120) == ["system", "assistant", "tool", "user"]
    assert await left(70) == ["system", "user"], "no answer of a tool without its call"
    assert await left(5) == ["system", "user"], "the last turn stays"
