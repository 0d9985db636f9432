from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from common.jobs import ClaimedJob, JobResult, Work
from common.settings import load_settings
from workers import answer as answer_module
from workers import generation as module
from workers.answer import Answer, StopStrings
from workers.engines.fake_engine import FakeGenerationEngine
from workers.engines.protocol import FinishReason, GenerationDelta, GenerationRequest
from workers.engines.revival import Revival
from workers.generation import generation
from workers.serving import on_shutdown

LONG = 10_000


def fake_model(**options: Any) -> Model:
    return Model("fake", "generation", "fake", "", 64, 4, options=options)


def claimed(claims: int = 1, prompt: str = "one two three", **params: Any) -> ClaimedJob:
    raw = msgspec.json.encode(Work({"prompt": prompt}, params))
    return ClaimedJob("job_00x", "job_00x:2p", claims, 0, 0, "normal", "ann", 60.0, raw, "generation", "fake")


class Bench:
    """A worker's context around one engine, with every emitted event kept."""

    def __init__(self, model: Model | None = None, engine: Any = None) -> None:
        self.model = model or fake_model()
        self.engine: Any = engine or FakeGenerationEngine(self.model)
        self.events: list[dict[str, Any]] = []
        self.step = asyncio.Event()
        self.ctx: dict[str, Any] = {
            "model": self.model,
            "engine": self.engine,
            "revival": Revival(self.engine, pause_s=0),
            "emit": self._emit,
            "emitted": self._emitted,
        }

    async def run(self, job: ClaimedJob | None = None) -> JobResult:
        if self.engine.starts == 0:
            await self.engine.start()
        return await generation(self.ctx, job or claimed())

    def start(self, job: ClaimedJob | None = None) -> asyncio.Task[JobResult]:
        return asyncio.create_task(self.run(job))

    async def until_events(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.events) < count:
                self.step.clear()
                await self.step.wait()

    @property
    def text(self) -> str:
        return "".join(event["text"] for event in self.events)

    async def _emit(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        assert event == "token"
        self.events.append(data)
        self.step.set()

    async def _emitted(self, job: ClaimedJob) -> list[dict[str, Any]]:
        assert job.claims > 1, "a first delivery has nothing to ask for"
        return list(self.events)


class Scripted:
    """An engine that plays given deltas, after what a resumed request asks to be repeated."""

    starts = 1
    alive = True

    def __init__(self, *pieces: str, finish: FinishReason = "stop") -> None:
        self.pieces = pieces
        self.finish = finish
        self.requests: list[GenerationRequest] = []
        self.closed = False

    async def generate(self, request_id: str, request: GenerationRequest) -> Any:
        self.requests.append(request)
        done = len(request.resume_ids)
        try:
            if done:
                yield GenerationDelta("".join(self.pieces[:done]), [], None, 1)
            for number, piece in enumerate(self.pieces[done:], done):
                last = number == len(self.pieces) - 1
                yield GenerationDelta(piece, [number], self.finish if last else None, 1)
        finally:
            self.closed = True


async def test_the_text_of_the_events_is_the_text_of_the_result() -> None:
    bench = Bench()
    result = await bench.run()
    assert result.output == {"text": bench.text, "finish_reason": "stop"}
    assert result.usage == {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}
    assert len(bench.events) == 16
    assert not result.incomplete


async def test_the_callers_limit_ends_an_answer_that_is_complete() -> None:
    result = await Bench().run(claimed(max_tokens=5))
    assert (result.output["finish_reason"], result.incomplete) == ("length", False)
    assert result.usage["completion_tokens"] == 5


async def test_the_contexts_end_leaves_an_answer_incomplete() -> None:
    result = await Bench(fake_model(tokens=LONG)).run(claimed(max_tokens=1000))
    assert (result.output["finish_reason"], result.incomplete) == ("length", True)
    assert result.usage["total_tokens"] == 64


async def test_the_models_defaults_stand_where_the_job_is_silent() -> None:
    engine = Scripted("a")
    model = fake_model()
    model.defaults.update(temperature=0.5, max_tokens=7)
    await Bench(model, engine).run(claimed(temperature=0, seed=3))
    assert engine.requests[0].sampling == {"temperature": 0, "seed": 3}
    assert engine.requests[0].max_tokens == 7


@pytest.mark.parametrize("cut", [1, 7, 15, 16])
async def test_a_job_delivered_again_goes_on_from_what_it_emitted(cut: int) -> None:
    whole = await Bench().run()
    bench = Bench()
    await bench.run()
    del bench.events[cut:]
    result = await bench.run(claimed(claims=2))
    assert result == whole
    assert bench.text == whole.output["text"]
    assert [token for event in bench.events for token in event["ids"]] != []


async def test_a_resumed_job_that_has_all_its_tokens_generates_none() -> None:
    bench = Bench()
    whole = await bench.run(claimed(max_tokens=4))
    emitted = len(bench.events)
    assert await bench.run(claimed(claims=2, max_tokens=4)) == whole
    assert len(bench.events) == emitted


@pytest.mark.parametrize("cut", range(1, 6))
async def test_a_stop_string_across_the_interruption_still_stops(cut: int) -> None:
    pieces = ("ab", "cS", "T", "OP", "never")
    bench = Bench(engine=Scripted(*pieces))
    whole = await bench.run(claimed(stop="STOP"))
    assert (whole.output["text"], whole.output["finish_reason"]) == ("abc", "stop")
    again = Bench(engine=Scripted(*pieces))
    again.events = bench.events[:cut]
    assert (await again.run(claimed(claims=2, stop="STOP"))).output == whole.output
    assert again.text == "abc"


async def test_several_answers_stream_with_their_index_and_go_on_each_by_itself() -> None:
    bench = Bench()
    whole = await bench.run(claimed(n=3, seed=1))
    choices = whole.output["choices"]
    assert len({choice["text"] for choice in choices}) == 3
    assert whole.usage == {"prompt_tokens": 3, "completion_tokens": 48, "total_tokens": 51}
    for cut in (1, 20, 47):
        again = Bench()
        again.events = bench.events[:cut]
        assert await again.run(claimed(claims=2, n=3, seed=1)) == whole
        for choice in choices:
            shown = [event["text"] for event in again.events if event["index"] == choice["index"]]
            assert "".join(shown) == choice["text"]


async def test_what_ends_one_of_several_answers_badly_ends_the_others() -> None:
    model = dataclasses.replace(fake_model(tokens=LONG, delay_s=0.001), max_model_len=2 * LONG)
    bench = Bench(model)

    async def refuse(job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        if data["index"] == 1:
            raise ConnectionError("lost lease")

    bench.ctx["emit"] = refuse
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionError):
            await bench.run(claimed(n=3, max_tokens=LONG))
    assert not bench.engine.running


@pytest.mark.parametrize(
    ("params", "structured"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, {"json": {}}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"grammar": "root ::= 1"}, {"grammar": "root ::= 1"}),
    ],
)
async def test_the_engine_is_told_what_the_answer_must_be(params: Any, structured: Any) -> None:
    engine = Scripted("a")
    await Bench(engine=engine).run(claimed(**params))
    assert engine.requests[0].structured == structured


async def test_the_fake_engine_keeps_to_a_choice_and_tells_log_probabilities() -> None:
    bench = Bench()
    result = await bench.run(claimed(choice=["yes", "no"], logprobs=True, top_logprobs=1))
    assert result.output["text"] in ("yes", "no")
    assert "".join(entry["token"] for entry in result.output["logprobs"]) == result.output["text"]
    with pytest.raises(JobFailed, match="invalid_request: the fake engine has no regex"):
        await bench.run(claimed(regex="a"))


async def test_tokens_without_text_go_along_with_the_next_text() -> None:
    bench = Bench(engine=Scripted("a", "", "", "bc", ""))
    result = await bench.run()
    assert bench.events == [{"text": "a", "ids": [0]}, {"text": "bc", "ids": [1, 2, 3]}]
    assert result.usage["completion_tokens"] == 5


async def test_what_was_emitted_stays_even_if_the_model_would_now_say_something_else() -> None:
    bench = Bench(engine=Scripted("x", "y", "z"))
    bench.events = [{"text": "other ", "ids": [9]}]
    result = await bench.run(claimed(claims=2))
    assert result.output["text"] == bench.text == "other yz"


async def test_a_cancelled_job_leaves_the_engine_at_once() -> None:
    bench = Bench(fake_model(tokens=LONG, delay_s=0.001))
    task = bench.start()
    await bench.until_events(2)
    assert bench.engine.running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.engine.running


async def test_a_stop_string_aborts_the_rest_in_the_engine() -> None:
    engine = Scripted("ab", "STOP", "never")
    await Bench(engine=engine).run(claimed(stop=["STOP"]))
    assert engine.closed


async def test_an_emit_that_fails_aborts_the_request() -> None:
    bench = Bench(fake_model(tokens=LONG))

    async def refuse(job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        raise ConnectionError("lost lease")

    bench.ctx["emit"] = refuse
    with pytest.raises(ConnectionError):
        await bench.run()
    assert not bench.engine.running


async def test_a_prompt_longer_than_the_context_fails_for_good() -> None:
    with pytest.raises(JobFailed) as caught:
        await Bench().run(claimed(prompt="word " * 64))
    assert (caught.value.code, caught.value.retryable) == ("prompt_too_long", False)


async def test_engine_death_fails_every_job_in_flight_and_restarts_the_engine_once() -> None:
    bench = Bench(fake_model(tokens=LONG, delay_s=0.001))
    await bench.engine.start()
    tasks = [bench.start() for _ in range(20)]
    await bench.until_events(20)
    bench.engine.die()
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert {(type(one), getattr(one, "code", ""), getattr(one, "retryable", None)) for one in failures} == {
        (JobFailed, "engine_died", True)
    }
    await bench.ctx["revival"].ready()
    assert (bench.engine.alive, bench.engine.starts) == (True, 2)


async def test_a_job_that_comes_during_a_restart_waits_for_it() -> None:
    bench = Bench(fake_model(start_s=0.05))
    await bench.engine.start()
    bench.engine.die()
    results = await asyncio.gather(bench.run(), bench.run())
    assert results[0] == results[1]
    assert bench.engine.starts == 2


async def test_a_cancelled_waiter_does_not_stop_the_restart() -> None:
    bench = Bench(fake_model(start_s=0.05))
    await bench.engine.start()
    bench.engine.die()
    first, second = bench.start(), bench.start()
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).output["finish_reason"] == "stop"
    assert bench.engine.starts == 2


async def test_an_engine_that_cannot_be_restarted_fails_its_jobs_and_may_be_tried_again() -> None:
    bench = Bench()
    await bench.engine.start()
    bench.engine.die()
    good, tries = bench.engine.start, []

    async def broken() -> None:
        tries.append(1)
        raise MemoryError("no room")

    bench.engine.start = broken
    with pytest.raises(JobFailed, match="engine_died: the engine died and 3 restarts failed"):
        await bench.run()
    await asyncio.wait([bench.ctx["revival"].begin()])
    assert len(tries) == 6
    bench.engine.start = good
    assert (await bench.run()).output["finish_reason"] == "stop"


async def test_an_engine_that_ends_without_a_reason_counts_as_dead() -> None:
    bench = Bench()

    async def nothing(request_id: str, request: GenerationRequest) -> Any:
        for delta in list[GenerationDelta]():
            yield delta

    bench.engine.generate = nothing
    with pytest.raises(JobFailed, match="engine_died"):
        await bench.run()


async def test_startup_loads_the_models_engine_and_shutdown_ends_it() -> None:
    ctx: dict[str, Any] = module.settings_for(fake_model(), load_settings())["ctx"]
    await module.on_startup(ctx)
    engine: Any = ctx["engine"]
    assert type(engine).__name__ == "FakeGenerationEngine"
    assert engine.alive
    await on_shutdown(ctx)
    assert not engine.alive
    await on_shutdown({})


async def test_shutdown_gives_up_a_restart_in_progress() -> None:
    ctx: dict[str, Any] = module.settings_for(fake_model(), load_settings())["ctx"]
    await module.on_startup(ctx)
    ctx["engine"].die()
    ctx["engine"].model.options["start_s"] = 60
    restart = ctx["revival"].begin()
    await asyncio.sleep(0)
    await on_shutdown(ctx)
    assert restart.cancelled()


def test_the_workers_settings_name_the_models_queue_and_slots() -> None:
    settings = module.settings_for(fake_model(), load_settings())
    assert (settings["queue_name"], settings["max_jobs"]) == ("generation:fake", 4)
    assert settings["functions"] == [generation]
    assert module.settings_for(fake_model(), load_settings(slots=9))["max_jobs"] == 9


def passed(stop: list[str], *pieces: str) -> tuple[list[str], bool]:
    gate = StopStrings(stop)
    shown = []
    for number, piece in enumerate(pieces):
        shown.append(gate.pass_on(piece, last=number == len(pieces) - 1))
        if gate.met:
            break
    return shown, gate.met


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "met"),
    [
        ([], ("a", "b"), ["a", "b"], False),
        (["END"], ("aE", "N", "D", "b"), ["a", "", ""], True),
        (["END"], ("aE", "N", "x", "b"), ["a", "", "ENx", "b"], False),
        (["END"], ("aEN",), ["aEN"], False),  # the last piece holds nothing back
        (["aab"], ("aa", "ab", "c"), ["", "a"], True),
        (["long stop", "st"], ("a long s", "top"), ["a ", "long "], True),  # complete first wins
        (["b", "abc"], ("ab", "c"), ["a"], True),
    ],
)
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(
    stop: list[str], pieces: tuple[str, ...], shown: list[str], met: bool
) -> None:
    assert passed(stop, *pieces) == (shown, met)


def test_an_answer_without_parameters_has_the_default_limit() -> None:
    assert Answer({}, []).max_tokens == answer_module.DEFAULT_MAX_TOKENS


async def test_ready_raises_engine_dead_when_there_is_no_way_back() -> None:
    bench = Bench()

    async def broken() -> None:
        raise OSError

    bench.engine.restart = broken
    with pytest.raises(EngineDead):
        await bench.ctx["revival"].ready()
