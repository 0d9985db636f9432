from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from common.catalogue import Model
from common.errors import JobFailed, SettingsInvalid
from tests.engines.conftest import CONTEXT, Worker
from workers.engines import vllm_prompts, vllm_together
from workers.engines.protocol import GenerationRequest
from workers.engines.vllm_engine import VllmEngine

PROMPT = {"prompt": "Every job is written down before it is acknowledged."}
LONG = {"prompt": "x"}


def engine_processes() -> dict[str, int]:
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in all_children(os.getpid())}
    return {role: pid for pid, name in names.items() for role in ("EngineCore", "Worker") if role.encode() in name}


def all_children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    return children | {below for child in children for below in all_children(child)}


async def direct(worker: Worker, prompt: str, max_tokens: int) -> str:
    """The text that vLLM gives when it is asked without us."""
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    text = ""
    async for output in worker.engine._llm.generate(prompt, params, "direct"):
        text = output.outputs[0].text
    return text


async def test_the_first_prompt_of_a_fresh_engine_may_be_one_token(worker: Worker) -> None:
    # Without `vllm_amx.py` it kills the engine on CPUs with AMX.
    assert worker.very_first is not None
    assert worker.very_first.usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


async def test_a_job_streams_what_vllm_itself_would_say(worker: Worker) -> None:
    result = await worker.run(PROMPT, max_tokens=40)
    assert result.output["text"] == worker.text() == await direct(worker, PROMPT["prompt"], 40)
    assert result.usage == {"prompt_tokens": 52, "completion_tokens": 40, "total_tokens": 92}
    assert (result.output["finish_reason"], result.incomplete) == ("length", False)
    assert 1 <= len(worker.events["job"]) <= 40  # fewer: bytes of one character; steps that a busy loop merged


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13, 20])
async def test_a_greedy_answer_that_was_interrupted_is_the_same_answer(worker: Worker, after: int) -> None:
    whole = await worker.run(PROMPT, max_tokens=60, name="whole")
    await worker.interrupted(PROMPT, after, max_tokens=60)
    again = await worker.run(PROMPT, max_tokens=60, claims=2)
    assert again == whole
    assert worker.text() == whole.output["text"]


async def test_an_interruption_inside_a_character_loses_none_of_it(worker: Worker) -> None:
    """Two bytes of a three-byte character are already out; the prompt plus these would not decode."""
    ids = worker.engine._llm.get_tokenizer().encode("café €")
    request = GenerationRequest(prompt="x", max_tokens=len(ids), resume_ids=ids[:-1])
    first = await anext(worker.engine.generate("cut", request))
    assert (first.text, first.finish_reason) == ("café ", None)


@pytest.mark.parametrize("prompt", [PROMPT, LONG])
async def test_tokens_that_nobody_reads_come_together_and_are_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, prompt: dict[str, str]
) -> None:
    """None is lost or doubled when readers come and go, and an answer that nobody reads has few events."""

    def ids(name: str) -> list[int]:
        return [token for event in worker.events[name] for token in event["ids"]]

    read = await worker.run(prompt, max_tokens=150, name="read")
    few = {}
    for name, is_read in {"unread": lambda events: False, "both": lambda events: events % 3 == 0}.items():
        monkeypatch.setattr(worker, "is_read", is_read)
        assert await worker.run(prompt, max_tokens=150, name=name) == read
        assert (ids(name), worker.text(name)) == (ids("read"), worker.text("read"))
        few[name] = len(worker.events[name])
    assert few["unread"] < len(worker.events["read"]) / 3
    await worker.stats.until_running(0)


async def test_a_stop_string_works_across_an_interruption(worker: Worker) -> None:
    whole = (await worker.run(PROMPT, max_tokens=60, name="whole")).output["text"]
    middle = len(whole) // 2
    stop = whole[middle : middle + 4]
    expected = whole[: whole.index(stop)]
    await worker.interrupted(PROMPT, 2, max_tokens=60, stop=stop)
    result = await worker.run(PROMPT, max_tokens=60, stop=stop, claims=2)
    assert (result.output["text"], result.output["finish_reason"]) == (expected, "stop")
    assert worker.text() == expected
    await worker.stats.until_running(0)


async def test_a_resumed_job_with_all_its_tokens_does_not_ask_the_engine(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await worker.run(PROMPT, max_tokens=20)
    shown = len(worker.events["job"])
    missing = 20 - sum(len(event["ids"]) for event in worker.events["job"])
    monkeypatch.setattr(worker.engine._llm, "generate", lambda *_: pytest.fail("the engine was asked"))
    again = await worker.run(PROMPT, max_tokens=20 - missing, claims=2)
    assert len(worker.events["job"]) == shown
    assert again.output["text"] == whole.output["text"]


async def test_the_end_token_ends_an_answer_even_if_it_was_the_last_thing_emitted(worker: Worker) -> None:
    request = GenerationRequest(prompt="x", max_tokens=9, resume_ids=[34, 35, 0])
    deltas = [delta async for delta in worker.engine.generate("ended", request)]
    assert [(delta.token_ids, delta.finish_reason) for delta in deltas] == [([], "stop")]


async def test_a_resumed_job_that_ignores_the_end_token_goes_on_after_it(worker: Worker) -> None:
    sampling = {"ignore_eos": True, "min_tokens": 8, "temperature": 0}
    request = GenerationRequest(prompt="x", max_tokens=9, resume_ids=[34, 35, 0], sampling=sampling)
    deltas = [delta async for delta in worker.engine.generate("on", request)]
    assert sum(len(delta.token_ids) for delta in deltas) == 6
    assert deltas[-1].finish_reason == "length"


async def test_the_contexts_end_leaves_an_answer_incomplete(worker: Worker) -> None:
    result = await worker.run(PROMPT, max_tokens=CONTEXT)
    assert (result.output["finish_reason"], result.incomplete) == ("length", True)
    assert result.usage["total_tokens"] == CONTEXT


async def test_a_conversation_goes_through_the_models_chat_template(worker: Worker) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert await worker.run(chat, max_tokens=8) == await worker.run(
        {"prompt": "<|user|>hello<|assistant|>"}, max_tokens=8, name="plain"
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "Every job."},
        {"messages": [{"role": "user", "content": "What is a lease?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is a lease?"}]}]},
    ],
)
async def test_a_short_prompt_is_the_same_tokens_as_one_that_goes_through_a_thread(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    request = GenerationRequest(**asked, max_tokens=1)
    short = await worker.engine._prompts.rendered(request)
    monkeypatch.setattr(vllm_prompts, "SHORT", 0)
    long = await worker.engine._prompts.rendered(request)
    assert short.pop("arrival_time") <= long.pop("arrival_time")
    assert short == long


async def test_a_conversation_for_a_model_without_a_template_fails_in_words(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.engine._llm.get_tokenizer(), "chat_template", None)
    with pytest.raises(JobFailed) as caught:
        await worker.run({"messages": [{"role": "user", "content": "hello"}]})
    assert (caught.value.code, caught.value.retryable) == ("no_chat_template", False)


@pytest.mark.parametrize(
    ("asked", "params", "code"),
    [
        ({"prompt": "x" * CONTEXT}, {}, "prompt_too_long"),
        ({"prompt": "x" * 100_000}, {}, "prompt_too_long"),
        ({"prompt": ""}, {}, "invalid_request"),
        ({"prompt": "\ud800"}, {}, "invalid_request"),
        (PROMPT, {"temperature": -1}, "invalid_request"),
        (PROMPT, {"top_p": 7}, "invalid_request"),
    ],
)
async def test_what_vllm_refuses_fails_the_job_for_good(
    worker: Worker, asked: dict[str, Any], params: dict[str, Any], code: str
) -> None:
    from common.jobs import ClaimedJob

    class Unencoded(ClaimedJob, frozen=True):
        @property
        def spec(self) -> Any:
            from common.jobs import JobSpec

            return JobSpec(kind="generation", model="tiny", input=asked, params=params)

    from workers.generation import generation

    job = Unencoded("job", "job:2p", 1, 0, 0, "normal", "ann", 60.0, b"", "generation", "tiny")
    with pytest.raises(JobFailed) as caught:
        await generation(worker.context, job)
    assert (caught.value.code, caught.value.retryable) == (code, False)


async def test_a_cancelled_job_frees_its_slot_and_cache_within_100_ms(worker: Worker) -> None:
    """By the scheduler's own count; another request keeps it stepping. The median of five."""
    delays = []
    for number in range(5):
        other = asyncio.create_task(worker.run(LONG, max_tokens=200, name=f"other{number}"))
        victim = asyncio.create_task(worker.run(PROMPT, max_tokens=200, name=f"victim{number}"))
        _, cache_of_two = await worker.stats.until_running(2)
        victim.cancel()
        cancelled = time.monotonic()
        freed, cache_of_one = await worker.stats.until_running(1)
        delays.append(freed - cancelled)
        assert cache_of_one < cache_of_two
        other.cancel()
        await asyncio.wait([other, victim])
        await asyncio.wait_for(idle(worker), 10)
    assert statistics.median(delays) < 0.1, delays


async def idle(worker: Worker) -> None:
    while worker.engine._llm.get_num_unfinished_requests():  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.001)
    worker.stats.steps.clear()


async def test_64_jobs_share_the_engines_steps(worker: Worker) -> None:
    names = [f"job{number}" for number in range(64)]
    results = await asyncio.gather(*(worker.run(PROMPT, max_tokens=30, name=name) for name in names))
    assert {result.usage["completion_tokens"] for result in results} == {30}
    assert all(worker.text(name) == result.output["text"] for name, result in zip(names, results, strict=True))
    assert max(running for _, running, _ in worker.stats.steps) > 32


async def test_jobs_that_come_together_begin_in_one_step(worker: Worker) -> None:
    await worker.stats.until_running(0)
    worker.stats.steps.clear()
    await asyncio.gather(*(worker.run(PROMPT, max_tokens=8, name=f"job{n}") for n in range(30)))
    assert next(running for _, running, _ in worker.stats.steps if running) == 30


async def test_a_request_that_was_said_to_be_followed_and_is_not_begins_all_the_same(worker: Worker) -> None:
    from vllm.sampling_params import SamplingParams

    params = vllm_together.marked(SamplingParams(max_tokens=4, temperature=0), followed=True)
    async with asyncio.timeout(10):
        outputs = [output async for output in worker.engine._llm.generate(PROMPT["prompt"], params, "alone")]
    assert outputs[-1].finished


async def test_the_engines_processes_are_out_of_reach_of_a_signal_to_our_group(worker: Worker) -> None:
    """Each has a session of its own, which only the process that unpickled its Owner has."""
    processes = engine_processes()
    assert set(processes) == {"EngineCore"}, "on a CPU the engine core computes itself"
    assert all(os.getsid(pid) == pid for pid in processes.values())


async def test_an_option_that_vllm_does_not_have_stops_the_start(tiny_model: Model) -> None:
    model = Model("tiny", "generation", "vllm", tiny_model.weights, CONTEXT, 4, options={"max_num_sequences": 3})
    with pytest.raises(SettingsInvalid, match=r"\[models.tiny\] vLLM .* has no option 'max_num_sequences'; did you"):
        await VllmEngine(model).start()


# The last test: it kills the engine that the others share.
async def test_a_killed_engine_core_fails_the_jobs_in_flight_and_comes_back_once(worker: Worker) -> None:
    before = await worker.run(PROMPT, max_tokens=20, name="before")
    jobs = [asyncio.create_task(worker.run(LONG, max_tokens=240, name=f"job{n}")) for n in range(8)]
    await worker.stats.until_running(8)
    old = engine_processes()
    os.kill(old["EngineCore"], signal.SIGKILL)
    failures = await asyncio.gather(*jobs, return_exceptions=True)
    assert {(getattr(one, "code", one), getattr(one, "retryable", None)) for one in failures} == {("engine_died", True)}
    waiting = asyncio.create_task(worker.run(PROMPT, max_tokens=20, name="after"))
    assert await waiting == before
    new = engine_processes()
    assert set(new) == {"EngineCore"}
    assert not set(new.values()) & set(old.values())
