from __future__ import annotations

from typing import Any

from workers.answer import Answer, DetailedAnswer, ToolCalls, result
from workers.engines.protocol import GenerationDelta

START = {"index": 0, "id": "call_j_0", "type": "function", "function": {"name": "add", "arguments": ""}}


def arguments(text: str) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": text}}


def entry(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -1.0, "bytes": [], "top_logprobs": []}


DELTAS = [
    GenerationDelta("", [1], None, 5, reasoning="I "),
    GenerationDelta("Let ", [2], None, 5, reasoning="think"),
    GenerationDelta("me", [3, 4], None, 5, tool_calls=[START]),
    GenerationDelta("", [5], None, 5, tool_calls=[arguments('{"a"')]),
    GenerationDelta("", [6], "tool_calls", 5, tool_calls=[arguments(": 1}")]),
]
WHOLE = GenerationDelta(
    "Let me", [], None, 5, reasoning="I think", tool_calls=[{**START, "function": {"name": "add", "arguments": '{"a"'}}]
)


def answered(answer: Answer, deltas: list[GenerationDelta]) -> list[dict[str, Any]]:
    return [event for delta in deltas if (event := answer.take(delta))]


def test_reasoning_and_tool_calls_stand_beside_the_text() -> None:
    answer = DetailedAnswer({}, [])
    events = answered(answer, DELTAS)
    assert len(events) == 5
    assert events[0] == {"text": "", "ids": [1], "reasoning": "I "}
    assert answer.output == {
        "text": "Let me",
        "finish_reason": "tool_calls",
        "reasoning": "I think",
        "tool_calls": [
            {"id": "call_j_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        ],
    }
    assert [token for event in events for token in event["ids"]] == [1, 2, 3, 4, 5, 6]


def test_a_replay_shows_nothing_twice_whatever_was_shown() -> None:
    whole = DetailedAnswer({}, [])
    events = answered(whole, DELTAS)
    for shown in range(1, 5):
        again = DetailedAnswer({}, events[:shown])
        after = answered(again, [WHOLE, DELTAS[-1]])
        assert again.output == whole.output
        together = events[:shown] + after
        assert "".join(event["text"] for event in together) == "Let me"
        assert "".join(event.get("reasoning", "") for event in together) == "I think"
        calls = ToolCalls()
        for event in together:
            calls.add(event.get("tool_calls", []))
        assert calls.whole == whole.output["tool_calls"]


def test_logprobs_go_along_with_their_tokens_the_last_ones_without_text_too() -> None:
    deltas = [
        GenerationDelta("a", [1], None, 1, logprobs=[entry("a")]),
        GenerationDelta("", [2], None, 1, logprobs=[entry("?")]),
        GenerationDelta("b", [3], None, 1, logprobs=[entry("b")]),
        GenerationDelta("", [0], "stop", 1, logprobs=[entry("end")]),
    ]
    answer = DetailedAnswer({"logprobs": True}, [])
    events = answered(answer, deltas)
    assert [[one["token"] for one in event["logprobs"]] for event in events] == [["a"], ["?", "b"], ["end"]]
    assert [one["token"] for one in answer.output["logprobs"]] == ["a", "?", "b", "end"]
    again = DetailedAnswer({"logprobs": True}, events[:2])
    answered(again, [GenerationDelta("ab", [], None, 1), deltas[-1]])
    assert again.output == answer.output


def test_several_answers_are_told_apart_by_their_index_and_counted_together() -> None:
    first, second = DetailedAnswer({}, [], 0), DetailedAnswer({}, [], 1)
    events = answered(first, [GenerationDelta("a", [1], "stop", 3)])
    events += answered(second, [GenerationDelta("b", [2, 3], "length", 3)])
    assert [event["index"] for event in events] == [0, 1]
    whole = result([first, second])
    assert whole.output == {
        "text": "a",
        "finish_reason": "stop",
        "choices": [
            {"index": 0, "text": "a", "finish_reason": "stop"},
            {"index": 1, "text": "b", "finish_reason": "length"},
        ],
    }
    assert whole.usage == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert whole.incomplete
    assert DetailedAnswer({}, events, 1).resumed_ids == [2, 3]


def test_a_stop_string_ends_the_text_of_a_detailed_answer() -> None:
    answer = DetailedAnswer({"stop": "END"}, [])
    answered(answer, [GenerationDelta("abEND", [1], None, 1, reasoning="END is near")])
    assert (answer.output["text"], answer.output["finish_reason"]) == ("ab", "stop")
    assert answer.output["reasoning"] == "END is near"
