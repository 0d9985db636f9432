"""What a request can ask beyond text, on the real engine, and that an interruption changes none of it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from common.catalogue import Model
from common.errors import JobFailed, SettingsInvalid
from tests.engines.conftest import Worker
from workers.answer import ToolCalls
from workers.engines.protocol import GenerationDelta, GenerationRequest
from workers.engines.vllm_check import problems
from workers.engines.vllm_requests import RESUMED, Parsers, resume_grammars, unknown_parsers

PROMPT = {"prompt": "Every job is written down."}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}


CHAT = {"messages": [{"role": "user", "content": "hello"}]}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"size": {"type": "integer", "maximum": 99, "minimum": 1}, "color": {"enum": ["red"]}},
                "required": ["size", "color"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("paint", "wash")
]


REQUIRED: dict[str, Any] = {
    "tools": TOOLS,
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "temperature": 1,
    "max_tokens": 200,
}


async def resumed(worker: Worker, after: int, asked: dict[str, Any] | None = None, **params: Any) -> Any:
    """The result of a job whose first delivery died when it had emitted so many events."""
    await worker.interrupted(asked or PROMPT, after, **params)
    return await worker.run(asked or PROMPT, claims=2, **params)


def check_call(call: dict[str, Any], names: tuple[str, ...] = ("paint", "wash")) -> None:
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] in names
    jsonschema.validate(json.loads(call["function"]["arguments"]), TOOLS[0]["function"]["parameters"])


@pytest.mark.parametrize("seed", range(8))
async def test_a_json_schema_is_kept_at_temperature_1(worker: Worker, seed: int) -> None:
    result = await worker.run(PROMPT, response_format=JSON_SCHEMA, max_tokens=120, temperature=1, seed=seed)
    jsonschema.validate(json.loads(result.output["text"]), SCHEMA)
    assert result.output["finish_reason"] == "stop"
    assert worker.text() == result.output["text"]


async def test_a_string_with_a_longest_length_is_json_too(worker: Worker) -> None:
    """xgrammar by itself would let control characters into it, and bytes are all that this model says."""
    schema = {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 3}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "texts", "schema": schema}}
    for seed in range(6):
        result = await worker.run(
            PROMPT, name=f"s{seed}", response_format=asked, max_tokens=220, temperature=1, seed=seed
        )
        assert len(json.loads(result.output["text"])) == 3


@pytest.mark.parametrize("after", [1, 2, 5, 9, 14])
async def test_structured_output_stays_what_it_is_across_an_interruption(worker: Worker, after: int) -> None:
    """With the grammar begun anew, another object would follow in the middle of the first."""
    result = await resumed(worker, after, response_format=JSON_SCHEMA, max_tokens=120, temperature=1, seed=after)
    jsonschema.validate(json.loads(result.output["text"]), SCHEMA)
    assert worker.text() == result.output["text"]


async def test_an_answer_matches_a_regex_a_choice_a_grammar_and_any_json_object(worker: Worker) -> None:
    hot: dict[str, Any] = {"temperature": 1, "seed": 4, "max_tokens": 60}
    text = (await worker.run(PROMPT, name="regex", regex="[ab]{3}-[0-9]{4}", **hot)).output["text"]
    assert re.fullmatch("[ab]{3}-[0-9]{4}", text)
    assert (await worker.run(PROMPT, name="choice", choice=["yes", "no"], **hot)).output["text"] in ("yes", "no")
    grammar = 'root ::= "SELECT " column\ncolumn ::= "one" | "two"'
    text = (await worker.run(PROMPT, name="grammar", grammar=grammar, **hot)).output["text"]
    assert text in ("SELECT one", "SELECT two")
    text = (await worker.run(PROMPT, name="object", response_format={"type": "json_object"}, **hot)).output["text"]
    assert text.startswith("{")


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "(?=a)b"},
        {"grammar": "root ::= nothing"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}},
    ],
)
async def test_a_structure_that_cannot_be_compiled_fails_the_job_for_good(worker: Worker, asked: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        await worker.run(PROMPT, max_tokens=9, **asked)
    assert (caught.value.code, caught.value.retryable) == ("invalid_request", False)
    assert (await worker.run(PROMPT, name="next", choice=["ok"])).output["text"] == "ok"


async def test_logprobs_are_those_of_a_direct_call(worker: Worker) -> None:
    from vllm.sampling_params import SamplingParams

    result = await worker.run(PROMPT, logprobs=True, top_logprobs=3, max_tokens=12)
    ours = result.output["logprobs"]
    params = SamplingParams(max_tokens=12, temperature=0, logprobs=3)
    async for output in worker.engine._llm.generate(PROMPT["prompt"], params, "direct-logprobs"):
        direct = output.outputs[0]
    assert len(ours) == result.usage["completion_tokens"] == 12
    for entry, token, place in zip(ours, direct.token_ids, direct.logprobs, strict=True):
        assert entry["logprob"] == pytest.approx(place[token].logprob, abs=1e-4)
        assert entry["token"] == place[token].decoded_token
        assert entry["bytes"] == list(entry["token"].encode())
        tops = sorted((one.rank, one.decoded_token) for one in place.values() if one.rank <= 3)
        assert [one["token"] for one in entry["top_logprobs"]] == [token for _, token in tops]
    told = [entry for event in worker.events["job"] for entry in event["logprobs"]]
    assert told == ours


async def test_logprobs_go_on_after_an_interruption(worker: Worker) -> None:
    whole = await worker.run(PROMPT, name="whole", logprobs=True, max_tokens=30)
    again = await resumed(worker, 3, logprobs=True, max_tokens=30)
    assert again.output["text"] == whole.output["text"] == worker.text()
    pairs = zip(again.output["logprobs"], whole.output["logprobs"], strict=True)
    assert all(one["logprob"] == pytest.approx(other["logprob"], abs=0.05) for one, other in pairs)


async def test_three_answers_are_three_answers_with_their_tokens_summed(worker: Worker) -> None:
    asked: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 7, "max_tokens": 20, "ignore_eos": True}
    result = await worker.run(PROMPT, **asked)
    choices = result.output["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["text"] for choice in choices}) == 3
    assert result.output["text"] == choices[0]["text"]
    assert (result.usage["completion_tokens"], result.usage["prompt_tokens"]) == (60, 26)
    for choice in choices:
        shown = [event["text"] for event in worker.events["job"] if event["index"] == choice["index"]]
        assert "".join(shown) == choice["text"]


async def test_three_answers_go_on_each_by_itself(worker: Worker) -> None:
    result = await resumed(worker, 7, n=3, response_format=JSON_SCHEMA, max_tokens=120, temperature=1, seed=3)
    for choice in result.output["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
        shown = [event["text"] for event in worker.events["job"] if event["index"] == choice["index"]]
        assert "".join(shown) == choice["text"]


@pytest.mark.parametrize("seed", range(4))
async def test_a_required_tool_is_called_with_arguments_of_its_schema(worker: Worker, seed: int) -> None:
    result = await worker.run(CHAT, **REQUIRED, seed=seed)
    assert (result.output["text"], result.output["finish_reason"]) == ("", "tool_calls")
    (call,) = result.output["tool_calls"]
    check_call(call)


async def test_a_tool_asked_for_by_name_is_the_one_that_is_called(worker: Worker) -> None:
    choice = {"type": "function", "function": {"name": "wash"}}
    result = await worker.run(CHAT, tools=TOOLS, tool_choice=choice, temperature=1, seed=1, max_tokens=200)
    (call,) = result.output["tool_calls"]
    check_call(call, ("wash",))
    assert result.output["finish_reason"] == "stop"


@pytest.mark.parametrize("after", [1, 2, 6])
async def test_a_tool_call_goes_on_after_an_interruption(worker: Worker, after: int) -> None:
    result = await resumed(worker, after, CHAT, **REQUIRED, seed=5)
    told = ToolCalls()
    for event in worker.events["job"]:
        told.add(event.get("tool_calls", []))
    assert told.whole == result.output["tool_calls"]
    (call,) = told.whole
    check_call(call)


async def test_with_tools_left_to_the_model_a_text_is_a_text(worker: Worker) -> None:
    plain = await worker.run(CHAT, name="plain", max_tokens=30)
    result = await worker.run(CHAT, tools=TOOLS, max_tokens=30)
    assert result.output == plain.output
    assert worker.text() == plain.output["text"]


class Loaded:
    """What `Reading` asks of vLLM, without an engine: the tiny model's tokenizer, with a reasoning model's tokens."""

    model_config = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def get_tokenizer(self) -> Any:
        """As AsyncLLM has it."""
        return self.tokenizer


@pytest.fixture(scope="module")
def loaded(tiny_model: Model) -> Loaded:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model.weights)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    return Loaded(tokenizer)


async def read(loaded: Loaded, model: Model, text: str, resume: int = 0, **asked: Any) -> list[GenerationDelta]:
    """The deltas of an answer of this text, token by token, the first ones of them in one piece."""
    tokenizer = loaded.get_tokenizer()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    request = GenerationRequest(messages=CHAT["messages"], max_tokens=99, resume_ids=ids[:resume], **asked)
    reading = Parsers(loaded, model).reading("job", request, [1, 2])
    assert reading is not None

    async def deltas() -> AsyncGenerator[GenerationDelta]:
        if resume:
            yield GenerationDelta(tokenizer.decode(ids[:resume]), [], None, 2)
        for number, token in enumerate(ids[resume:], resume + 1):
            yield GenerationDelta(tokenizer.decode([token]), [token], "stop" if number == len(ids) else None, 2)

    return [delta async for delta in reading.read(deltas())]


@pytest.mark.parametrize("resume", [0, 3, 9, 12])
async def test_reasoning_is_told_apart_from_the_answer(loaded: Loaded, tiny_model: Model, resume: int) -> None:
    model = replace(tiny_model, tool_parser=None, reasoning_parser="deepseek_r1")
    deltas = await read(loaded, model, "I ponder</think>So be it.", resume)
    assert "".join(delta.reasoning for delta in deltas) == "I ponder"
    assert "".join(delta.text for delta in deltas) == "So be it."


@pytest.mark.parametrize("resume", [0, 5, 20, 60])
async def test_a_call_that_the_model_makes_by_itself_is_found(loaded: Loaded, tiny_model: Model, resume: int) -> None:
    text = 'Well. <tool_call>\n{"name": "paint", "arguments": {"size": 3, "color": "red"}}\n</tool_call>'
    deltas = await read(loaded, tiny_model, text, resume, tools=TOOLS)
    calls = ToolCalls()
    for delta in deltas:
        calls.add(delta.tool_calls or [])
    (call,) = calls.whole
    check_call(call, ("paint",))
    assert call["id"] == "call_job_0"
    assert "".join(delta.text for delta in deltas).strip() == "Well."
    assert deltas[-1].finish_reason == "tool_calls"


class Recorder:
    """A grammar that notes the tokens it is led over."""

    def __init__(self) -> None:
        self.led: list[int] = []

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.led += tokens
        return True


@pytest.mark.parametrize(
    ("emitted", "led"),
    [("I ponder</think>{", "{"), ("</think>", ""), ("I ponder", ""), ('</think>{"a"', '{"a"')],
)
def test_a_resumed_grammar_is_led_over_the_answer_and_not_over_the_reasoning_before_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, emitted: str, led: str
) -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.request import StructuredOutputRequest

    grammar, ids = Recorder(), loaded.tokenizer.encode(emitted)
    monkeypatch.setattr(StructuredOutputManager, "_create_grammar", lambda *_: grammar)
    resume_grammars()
    manager = object.__new__(StructuredOutputManager)
    manager.enable_in_reasoning, manager.tokenizer = False, loaded.tokenizer
    manager.reasoner_cls = ReasoningParserManager.get_reasoning_parser("deepseek_r1")
    structured = StructuredOutputRequest(StructuredOutputsParams(regex=".*"), reasoning_ended=False)
    request = SimpleNamespace(
        request_id="job",
        sampling_params=SamplingParams(extra_args={RESUMED: len(ids)}),
        prompt_token_ids=[1, 2, *ids],
        all_token_ids=[1, 2, *ids],
        structured_output_request=structured,
    )
    assert manager._create_grammar(request) is grammar
    assert loaded.tokenizer.decode(grammar.led) == led
    assert structured.reasoning_ended == ("</think>" in emitted)


def test_a_parser_that_vllm_does_not_have_is_refused_and_the_others_are_named(tiny_model: Model) -> None:
    ((key, reason),) = unknown_parsers(replace(tiny_model, tool_parser="telepathy"))
    assert key == "tool_parser"
    assert re.match("tool_parser is 'telepathy'; vLLM has .*hermes", reason)
    ((key, reason),) = unknown_parsers(replace(tiny_model, reasoning_parser="telepathy"))
    assert key == "reasoning_parser"
    assert re.match("reasoning_parser is 'telepathy'; vLLM has .*deepseek_r1", reason)


def test_vision_of_a_model_that_takes_no_images_is_refused(tiny_model: Model) -> None:
    assert problems(replace(tiny_model, vision=True)) == [
        "catalogue: [models.tiny] vision is true, and the model takes no images"
    ]


def test_a_parser_whose_tokens_the_model_does_not_have_stops_the_start(tiny_model: Model) -> None:
    from transformers import AutoTokenizer

    loaded = Loaded(AutoTokenizer.from_pretrained(tiny_model.weights))
    with pytest.raises(SettingsInvalid, match=r"tiny: .*reasoning-parser deepseek_r1 cannot be used"):
        Parsers(loaded, replace(tiny_model, reasoning_parser="deepseek_r1"))
