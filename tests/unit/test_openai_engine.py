"""The engine of hosted models, against a stand-in for the upstream on a real socket."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
import json
import logging
import struct
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from common.catalogue import Model
from common.cost import Cost
from common.errors import EngineDead, JobFailed, NotNow, SettingsInvalid
from common.jobs import ClaimedJob, Work
from tests.unit.test_generation_function import Bench, claimed
from tests.upstream_stand_in import USAGE, WORDS, Reply, StandIn, chunk, stream
from tests.waiting import until
from workers.engines import embedding_engine, generation_engine
from workers.engines.openai_engine import OpenAIEmbeddingEngine, OpenAIGenerationEngine
from workers.engines.protocol import GenerationDelta, GenerationRequest
from workers.engines.upstream_client import retry_after_s

KEY = "sk-not-for-anybodys-eyes"
BUSY = Reply(429, {"retry-after-ms": "80"}, {"error": {"message": "slow down"}})


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with StandIn().serving() as stand_in:
        yield stand_in


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.upstream_client.RETRY_S", 0.001)
    monkeypatch.setattr("workers.engines.upstream_client.PAUSE_S", 0.02)


def hosted(upstream: StandIn, kind: Any = "generation", **options: Any) -> Model:
    options = {"base_url": upstream.url, "timeout_s": 5, **options}
    return Model("hosted", kind, "openai", "org/big", 4096, 8, options=options)


@asynccontextmanager
async def engine_of(model: Model) -> AsyncIterator[OpenAIGenerationEngine]:
    engine = generation_engine(model)
    assert isinstance(engine, OpenAIGenerationEngine)
    await engine.start()
    yield engine
    await engine.stop()


@asynccontextmanager
async def embedder_of(model: Model) -> AsyncIterator[OpenAIEmbeddingEngine]:
    engine = embedding_engine(model, Path())
    assert isinstance(engine, OpenAIEmbeddingEngine)
    await engine.start()
    yield engine
    await engine.stop()


def prompt(**more: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "count", "max_tokens": 9, **more})


async def ask(engine: OpenAIGenerationEngine, request: GenerationRequest | None = None) -> list[GenerationDelta]:
    async with aclosing(engine.generate("job", request or prompt())) as deltas:
        return [delta async for delta in deltas]


async def failure(engine: OpenAIGenerationEngine, request: GenerationRequest | None = None) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await ask(engine, request)
    return caught.value


def text(deltas: list[GenerationDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_an_answer_comes_as_it_is_streamed_with_the_upstreams_own_count(upstream: StandIn) -> None:
    upstream.gate.clear()
    async with engine_of(hosted(upstream)) as engine, aclosing(engine.generate("job", prompt(stop=["END"]))) as deltas:
        first = await anext(deltas)
        assert first.text == "one "
        upstream.gate.set()
        rest = [delta async for delta in deltas]
    assert text([first, *rest]) == "".join(WORDS)
    assert (rest[-1].finish_reason, rest[-1].usage) == ("stop", {"prompt_tokens": 7, "completion_tokens": 4})
    path, _, body = upstream.requests[0]
    assert path == "/v1/completions"
    assert body == {
        "model": "org/big", "prompt": "count", "max_tokens": 9, "stop": ["END"], "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


async def test_messages_go_to_the_chat_with_the_field_for_its_limit(upstream: StandIn) -> None:
    upstream.usual = stream(WORDS, finish="length", chat=True)
    messages = [{"role": "user", "content": "count"}]
    async with engine_of(hosted(upstream, max_tokens_field="max_completion_tokens")) as engine:
        deltas = await ask(engine, GenerationRequest(messages=messages, max_tokens=4, sampling={"temperature": 0}))
    assert (text(deltas), deltas[-1].finish_reason) == ("".join(WORDS), "length")
    path, _, body = upstream.requests[0]
    assert (path, body["messages"], body["max_completion_tokens"]) == ("/v1/chat/completions", messages, 4)
    assert (body["temperature"], "max_tokens" in body) == (0, False)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("extensions", "structured", "sent"),
    [
        (False, {"json": SCHEMA}, {"response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}
        }}),
        (False, {"json_object": True}, {"response_format": {"type": "json_object"}}),
        (True, {"json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        (True, {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
    ],
)  # fmt: skip
async def test_a_structure_is_asked_for_in_words_that_the_upstream_knows(
    upstream: StandIn, extensions: bool, structured: dict[str, Any], sent: dict[str, Any]
) -> None:
    async with engine_of(hosted(upstream, extensions=extensions)) as engine:
        await ask(engine, prompt(structured=structured))
    assert sent.items() <= upstream.requests[0][2].items()


async def test_a_text_with_unicodes_own_line_ends_arrives_whole(upstream: StandIn) -> None:
    words = ["a\u2028b", "\x85c", "\u2029\x0b\x0c"]
    upstream.usual = stream(words)
    async with engine_of(hosted(upstream)) as engine:
        assert text(await ask(engine)) == "".join(words)


async def test_the_key_is_sent_and_shown_nowhere(
    upstream: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOSTED_KEY", KEY)
    monkeypatch.setenv("HOSTED_ORG", "us")
    caplog.set_level(logging.DEBUG)
    upstream.replies = [
        Reply(401, {"retry-after": "0"}, {"error": {"message": f"no such key {KEY}"}}),
        Reply(400, {}, {"error": {"message": f"bad {KEY}"}}),
    ]
    options = {"api_key_env": "HOSTED_KEY", "headers_env": {"OpenAI-Organization": "HOSTED_ORG"}}
    async with engine_of(hosted(upstream, **options)) as engine:
        failed = await failure(engine)
    headers = upstream.requests[0][1]
    assert (headers["authorization"], headers["openai-organization"]) == (f"Bearer {KEY}", "us")
    assert failed.message == "upstream of hosted: 400 bad ***"
    assert "no such key ***" in caplog.text
    assert KEY not in caplog.text + str(engine.model)


async def test_another_header_gets_the_bare_key(upstream: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", KEY)
    async with engine_of(hosted(upstream, api_key_env="HOSTED_KEY", api_key_header="api-key")) as engine:
        await ask(engine)
    assert upstream.requests[0][1]["api-key"] == KEY


@pytest.mark.parametrize(("value", "said"), [(None, "is not set"), ("  ", "is not set"), ("a\nb", "is not printable")])
async def test_a_missing_variable_stops_the_start_by_its_name(
    upstream: StandIn, monkeypatch: pytest.MonkeyPatch, value: str | None, said: str
) -> None:
    monkeypatch.delenv("HOSTED_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("HOSTED_KEY", value)
    with pytest.raises(SettingsInvalid, match=rf"variable HOSTED_KEY \(api_key_env\) {said}"):
        await generation_engine(hosted(upstream, api_key_env="HOSTED_KEY")).start()


async def test_no_more_calls_than_it_takes_are_made_at_once(upstream: StandIn) -> None:
    upstream.gate.clear()
    async with engine_of(hosted(upstream, concurrency=3)) as engine:
        tasks = [asyncio.create_task(ask(engine)) for _ in range(9)]
        await until(lambda: upstream.running == 3, "three run")
        upstream.gate.set()
        answers = await asyncio.gather(*tasks)
    assert {text(answer) for answer in answers} == {"".join(WORDS)}
    assert upstream.most == 3


async def test_giving_up_closes_the_connection_at_once_and_frees_the_turn(upstream: StandIn) -> None:
    upstream.gate.clear()
    async with engine_of(hosted(upstream, concurrency=1)) as engine:
        task = asyncio.create_task(ask(engine))
        await until(lambda: upstream.running == 1, "it runs")
        task.cancel()
        started = time.monotonic()
        await until(lambda: upstream.left == 1 and upstream.running == 0, "the upstream sees it leave")
        assert time.monotonic() - started < 0.5
        upstream.gate.set()
        assert text(await ask(engine)) == "".join(WORDS)


async def test_leaving_between_two_deltas_closes_the_connection_at_once(upstream: StandIn) -> None:
    upstream.gate.clear()
    async with engine_of(hosted(upstream)) as engine:
        async with aclosing(engine.generate("job", prompt())) as deltas:
            await anext(deltas)
        assert await until(lambda: upstream.left == 1, "the upstream sees it leave") < 0.5


async def test_a_busy_upstream_gets_its_pause_and_then_one_call_first(upstream: StandIn) -> None:
    upstream.replies = [BUSY, BUSY, BUSY, BUSY]
    async with engine_of(hosted(upstream, concurrency=4)) as engine:
        answers = await asyncio.gather(*(ask(engine) for _ in range(4)))
    assert {text(answer) for answer in answers} == {"".join(WORDS)}
    arrived = upstream.arrived
    assert len(arrived) == 8
    assert arrived[4] - arrived[3] >= 0.078, "nobody calls before retry-after is over"
    first, others = arrived[4], arrived[5:]
    assert all(first < other for other in others)


async def test_once_one_call_was_taken_the_others_do_not_wait_for_each_other(upstream: StandIn) -> None:
    upstream.replies = [BUSY, BUSY, BUSY, BUSY, stream(WORDS)]
    upstream.replies += [dataclasses.replace(stream(WORDS), late=True) for _ in range(3)]
    upstream.gate.clear()
    async with engine_of(hosted(upstream, concurrency=4)) as engine:
        tasks = [asyncio.create_task(ask(engine)) for _ in range(4)]
        await until(lambda: len(upstream.requests) == 8, "three are asked at once")
        upstream.gate.set()
        await asyncio.gather(*tasks)


async def test_a_call_that_was_taken_earlier_does_not_end_the_pause(upstream: StandIn) -> None:
    asked_for = Reply(429, {"retry-after-ms": "300"}, {"error": {"message": "slow down"}})
    upstream.replies = [dataclasses.replace(stream(WORDS), late=True), asked_for]
    upstream.gate.clear()
    async with engine_of(hosted(upstream)) as engine:
        early = asyncio.create_task(ask(engine))
        await until(lambda: len(upstream.requests) == 1, "one call is under way")
        refused = asyncio.create_task(ask(engine))
        await until(lambda: engine.client.held_s > 0, "another is refused")
        upstream.gate.set()
        await early
        await asyncio.gather(refused, ask(engine))
    _, refusal, *others = upstream.arrived
    assert len(others) == 2
    assert min(others) - refusal >= 0.29


async def test_calls_refused_together_count_as_one_pause_and_no_pause_at_all_is_not_believed_twice(
    upstream: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Reply(429, {"retry-after": "0"}, {"error": {"message": "slow down"}})
    upstream.replies = [nothing] * 8
    async with engine_of(hosted(upstream, concurrency=4)) as engine:
        await asyncio.gather(*(ask(engine) for _ in range(4)))
    assert len(upstream.requests) == 4 + 5 + 3, "the first of the next ones takes the other refusals, one by one"
    gaps = [after - before for before, after in itertools.pairwise(upstream.arrived[4:9])]
    assert all(gap >= least for gap, least in zip(gaps, (0.03, 0.07, 0.15, 0.31), strict=True))
    assert len([record for record in caplog.records if "no calls for" in record.message]) == 5


async def test_one_connection_serves_one_answer_after_the_other(upstream: StandIn) -> None:
    async with engine_of(hosted(upstream)) as engine:
        for _ in range(5):
            await ask(engine)
    assert upstream.connections == 1


async def test_after_a_refusal_a_second_one_reaches_only_the_call_that_goes_first(upstream: StandIn) -> None:
    upstream.replies = [BUSY, BUSY, BUSY, BUSY, BUSY]
    async with engine_of(hosted(upstream, concurrency=4)) as engine:
        await asyncio.gather(*(ask(engine) for _ in range(4)))
    assert len(upstream.requests) == 4 + 1 + 4


@pytest.mark.parametrize("status", [401, 402, 429, 503, 529])
async def test_a_job_that_would_wait_too_long_is_given_back_not_failed(upstream: StandIn, status: int) -> None:
    upstream.usual = Reply(status, {"retry-after": "3600"}, {"error": {"message": "tomorrow"}})
    async with engine_of(hosted(upstream, hold_s=0.2)) as engine:
        assert engine.admits() == 8
        with pytest.raises(NotNow):
            await ask(engine)
        assert engine.admits() == 0, "the worker takes no more jobs"
        assert 3590 < engine.client.held_s <= 3600
        with pytest.raises(NotNow):
            await ask(engine)
    assert len(upstream.requests) == 1, "the second job did not even ask"


async def test_an_upstream_that_is_away_costs_no_attempt_and_is_found_again(upstream: StandIn) -> None:
    gone = StandIn()
    async with gone.serving():
        pass
    async with engine_of(hosted(gone, hold_s=0.15)) as engine:
        with pytest.raises(NotNow):
            await ask(engine)
        async with gone.serving(gone.port):
            await asyncio.sleep(engine.client.held_s)
            assert text(await ask(engine)) == "".join(WORDS)


async def test_an_error_of_the_server_is_tried_again_and_then_fails_the_attempt(upstream: StandIn) -> None:
    broken = Reply(500, {}, {"error": {"message": "oh"}})
    upstream.replies = [broken, broken]
    async with engine_of(hosted(upstream, max_retries=2)) as engine:
        assert text(await ask(engine)) == "".join(WORDS)
        upstream.replies = [broken] * 3
        failed = await failure(engine)
    assert (failed.code, failed.message, failed.retryable) == ("upstream_error", "upstream of hosted: 500 oh", True)
    assert len(upstream.requests) == 6


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "max_tokens is\n too large"}}, "max_tokens is too large"),
        ({"detail": "nope"}, "nope"),
        (b"<html>no</html>", "<html>no</html>"),
        ({"error": {"message": "x" * 9000}}, "x" * 200),
        (b"", "Because"),
    ],
)
async def test_a_request_it_does_not_like_fails_for_good_in_its_words(upstream: StandIn, body: Any, said: str) -> None:
    upstream.usual = Reply(422, {}, body)
    async with engine_of(hosted(upstream)) as engine:
        failed = await failure(engine)
    assert (failed.code, failed.retryable, len(upstream.requests)) == ("upstream_refused", False, 1)
    assert said in failed.message
    assert len(failed.message) < 400


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(events=[chunk("one ")], cut=True), "upstream_broke"),
        (Reply(events=[chunk("one "), b"data: [DONE]\n\n"]), "upstream_broke"),
        (Reply(events=[chunk("one "), b"data: {not json\n\n"]), "upstream_broke"),
        (Reply(events=[chunk("one "), b'data: {"choices": "none"}\n\n']), "upstream_broke"),
        (Reply(events=[chunk("one "), b'data: {"error": {"message": "died"}}\n\n']), "upstream_error"),
        (Reply(events=[chunk("one ")], silent=True), "upstream_timeout"),
        (Reply(silent=True), "upstream_timeout"),
        (Reply(body={"choices": [{"text": "not streamed"}]}), "upstream_broke"),
    ],
)
async def test_an_answer_that_breaks_off_fails_the_attempt(upstream: StandIn, reply: Reply, code: str) -> None:
    upstream.replies = [reply]
    async with engine_of(hosted(upstream, timeout_s=0.2)) as engine:
        failed = await failure(engine)
        assert (failed.code, failed.retryable) == (code, True)
        assert text(await ask(engine)) == "".join(WORDS), "the connection and the turn are free again"


async def test_what_its_filter_ends_fails_for_good(upstream: StandIn) -> None:
    upstream.usual = stream(WORDS, finish="content_filter")
    async with engine_of(hosted(upstream)) as engine:
        failed = await failure(engine)
    assert (failed.code, failed.retryable) == ("content_filter", False)


@asynccontextmanager
async def bench_on(upstream: StandIn, **options: Any) -> AsyncIterator[Bench]:
    model = hosted(upstream, **options)
    async with engine_of(model) as engine:
        engine.starts = 1  # type: ignore[attr-defined]
        yield Bench(model, engine)


@pytest.mark.parametrize("shown", [["one "], ["one ", "tw"], WORDS])
async def test_a_job_that_broke_off_goes_on_where_the_same_answer_comes_again(
    upstream: StandIn, shown: list[str]
) -> None:
    async with bench_on(upstream) as bench:
        bench.events = [{"text": piece} for piece in shown]
        result = await bench.run(claimed(claims=2))
    assert result.output == {"text": "".join(WORDS), "finish_reason": "stop"}
    assert bench.text == "".join(WORDS)


@pytest.mark.parametrize("shown", ["ONE ", "one two three four five", "one two X"])
async def test_a_job_that_broke_off_fails_rather_than_show_two_answers(upstream: StandIn, shown: str) -> None:
    async with bench_on(upstream) as bench:
        bench.events = [{"text": shown}]
        with pytest.raises(JobFailed, match="asked again hosted says something else") as caught:
            await bench.run(claimed(claims=2))
    assert (caught.value.code, caught.value.retryable, bench.text) == ("interrupted", True, shown)


async def test_what_an_upstream_began_a_local_engine_ends(upstream: StandIn) -> None:
    bench = Bench()
    whole = await bench.run()
    bench.events = [{"text": str(whole.output["text"])[:12]}]  # two words, as an upstream tells them: without ids
    result = await bench.run(claimed(claims=2))
    assert result.output == whole.output
    assert bench.text == whole.output["text"]


async def test_tokens_are_counted_by_the_upstream_or_not_at_all(upstream: StandIn) -> None:
    async with bench_on(upstream) as bench:
        assert (await bench.run(claimed())).usage == USAGE
        upstream.usual = stream(WORDS, usage=None)
        assert (await bench.run(claimed())).usage == {}
    assert all("ids" not in event for event in bench.events)


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Rom"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
]


def calling(*before: str) -> Reply:
    """An answer that calls two tools, in pieces as OpenAI streams them."""
    pieces = [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"in": '}},
        {"index": 0, "function": {"arguments": '"Rom"}'}},
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]
    whole = stream(list(before), finish="tool_calls", chat=True)
    assert whole.events is not None
    deltas = [{"choices": [{"index": 0, "delta": {"content": None, "tool_calls": [piece]}}]} for piece in pieces]
    whole.events[len(before) : len(before)] = [b"data: " + json.dumps(delta).encode() + b"\n\n" for delta in deltas]
    return whole


def asking_for_tools(claims: int = 1) -> ClaimedJob:
    work = Work({"messages": [{"role": "user", "content": "?"}]}, {"tools": TOOLS, "tool_choice": "required"})
    return msgspec.structs.replace(claimed(claims), raw=msgspec.json.encode(work))


@pytest.mark.parametrize("before", [[], ["Let me ", "see."]])
async def test_tool_calls_are_read_whole_whatever_is_shown_when_the_job_comes_again(
    upstream: StandIn, before: list[str]
) -> None:
    upstream.usual = calling(*before)
    async with bench_on(upstream) as bench:
        whole = await bench.run(asking_for_tools())
        assert whole.output == {"text": "".join(before), "finish_reason": "tool_calls", "tool_calls": CALLS}
        body = upstream.requests[0][2]
        assert (body["tools"], body["tool_choice"], "parallel_tool_calls" in body) == (TOOLS, "required", False)
        events = list(bench.events)
        assert [event.get("tool_calls") for event in events[:-1]] == [None] * len(before)
        for cut in range(1, len(events) + 1):
            bench.events = events[:cut]
            assert await bench.run(asking_for_tools(2)) == whole
            assert bench.text == "".join(before)
            assert sum(len(event.get("tool_calls", [])) for event in bench.events) == 2


@pytest.mark.parametrize(("used", "incomplete"), [(4, True), (20, False), (None, False)])
async def test_a_limit_that_is_not_the_callers_leaves_the_answer_incomplete(
    upstream: StandIn, used: int | None, incomplete: bool
) -> None:
    usage = None if used is None else {"prompt_tokens": 7, "completion_tokens": used}
    upstream.usual = stream(WORDS, "length", usage)
    async with bench_on(upstream) as bench:
        assert (await bench.run(claimed(max_tokens=20))).incomplete is incomplete


async def test_a_priced_model_says_what_the_job_cost(upstream: StandIn) -> None:
    async with bench_on(upstream) as bench:
        bench.ctx["model"] = Model("hosted", "generation", "openai", "x", 9, 9, cost=Cost("EUR", 0.5, 1.75))
        assert (await bench.run(claimed())).usage == {**USAGE, "cost_micros": 10, "cost_currency": "EUR"}
        upstream.usual = stream(WORDS, usage=None)
        assert (await bench.run(claimed())).usage == {}, "a cost that is not known is not made up"


def test_an_audio_minute_has_a_price() -> None:
    assert Cost("USD", audio_minute=0.006).of({"audio_seconds": 90})["cost_micros"] == 9000


def vector(number: float) -> list[float]:
    return [number, number / 2, -1.0]


def vectors(numbers: list[float], encoded: bool, total: int) -> Reply:
    rows: list[dict[str, Any]] = []
    for index, number in enumerate(numbers):
        row: Any = vector(number)
        rows.append(
            {"index": index, "embedding": base64.b64encode(struct.pack("<3f", *row)).decode() if encoded else row}
        )
    return Reply(body={"data": rows[::-1], "usage": {"prompt_tokens": total, "total_tokens": total}})


@pytest.mark.parametrize("encoded", [True, False])
async def test_vectors_come_in_the_order_of_the_texts_over_several_calls(upstream: StandIn, encoded: bool) -> None:
    texts = [str(number) for number in range(5)]
    upstream._next = lambda body: vectors([float(t) for t in body["input"]], encoded, len(body["input"]))  # type: ignore[method-assign]
    async with embedder_of(hosted(upstream, "embedding", batch_texts=2)) as engine:
        batch = await engine.embed(texts)
    assert batch.vectors.tolist() == [vector(float(number)) for number in range(5)]
    assert batch.prompt_tokens == 5
    assert sorted(len(body["input"]) for _, _, body in upstream.requests) == [1, 2, 2]
    assert {body["encoding_format"] for _, _, body in upstream.requests} == {"base64"}


async def test_cohere_is_asked_in_its_own_words(upstream: StandIn) -> None:
    upstream._next = lambda body: Reply(  # type: ignore[method-assign]
        body={
            "embeddings": {"float": [vector(float(text)) for text in body["texts"]]},
            "meta": {"billed_units": {"input_tokens": 3}},
        }
    )
    async with embedder_of(hosted(upstream, "embedding", flavour="cohere", input_type="search_query")) as engine:
        batch = await engine.embed([str(number) for number in range(97)])
    assert batch.vectors.tolist() == [vector(float(number)) for number in range(97)]
    assert batch.prompt_tokens == 6
    path, _, body = upstream.requests[0]
    assert (path, len(body["texts"])) == ("/v1/embed", 96)
    assert (body["input_type"], body["embedding_types"], body["model"]) == ("search_query", ["float"], "org/big")
    assert body["truncate"] == "END"


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]},
        {"data": [{"index": 0, "embedding": "!"}, {"index": 1, "embedding": "!"}]},
        {"vectors": []},
        b"garbage",
    ],
)
async def test_vectors_that_cannot_be_told_apart_fail_the_attempt(upstream: StandIn, body: Any) -> None:
    upstream.usual = Reply(body=body)
    async with embedder_of(hosted(upstream, "embedding")) as engine:
        with pytest.raises(JobFailed) as caught:
            await engine.embed(["a", "b"])
    assert (caught.value.code, caught.value.retryable) == ("upstream_broke", True)


async def test_one_call_that_fails_ends_the_others_of_its_job(upstream: StandIn) -> None:
    upstream.replies = [Reply(silent=True), Reply(400, {}, {"error": {"message": "no"}})]
    async with embedder_of(hosted(upstream, "embedding", batch_texts=1)) as engine:
        with pytest.raises(JobFailed, match="400 no"):
            await engine.embed(["a", "b"])
        await until(lambda: upstream.running == 0, "nothing is left running")


async def test_an_engine_that_was_stopped_serves_nothing_until_it_is_started_again(upstream: StandIn) -> None:
    async with engine_of(hosted(upstream)) as engine:
        await engine.stop()
        assert not engine.alive
        with pytest.raises(EngineDead):
            await ask(engine)
        await engine.restart()
        assert text(await ask(engine)) == "".join(WORDS)


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "9"}, 9),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_pause_is_read_as_clients_read_it(headers: dict[str, str], pause_s: float | None) -> None:
    assert retry_after_s(httpx.Headers(headers)) == pause_s


def test_a_pause_may_be_a_date() -> None:
    date = formatdate(time.time() + 60, usegmt=True)
    assert 57 < (retry_after_s(httpx.Headers({"retry-after": date})) or 0) <= 60
