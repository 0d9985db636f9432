"""What the catalogue asks of vLLM, seen on the real engine; each test fails when the option does not reach it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from common.catalogue import Model
from common.jobs import Priority
from tests.engines.conftest import SchedulerStats, Worker
from tests.engines.tiny_model import write_tiny_adapter, write_tiny_model
from workers.engines.vllm_engine import VllmEngine

CONTEXT = 1024
BLOCK = 128  # tokens of vLLM's KV cache block on CPU
BLOCKS = 40
BLOCK_BYTES = BLOCK * 2 * 2 * 4 * 32 * 2  # keys and values, 2 layers, 4 heads of 32, bfloat16
PROMPT = {"prompt": "Every job is written down before it is acknowledged. Every job is written"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model with two adapters and n-gram speculation, whose KV cache holds few requests."""
    folder = tmp_path_factory.mktemp("options")
    write_tiny_model(folder / "model", positions=CONTEXT)
    write_tiny_adapter(folder / "sql", seed=1)
    write_tiny_adapter(folder / "tone", seed=2, rank=4)
    return Model(
        "small",
        "generation",
        "vllm",
        str(folder / "model"),
        CONTEXT,
        slots=24,
        options={"enforce_eager": True, "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES},
        folder=folder,
        min_slots=2,
        adapters={"sql": "sql", "tone": "tone"},
        speculative={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2, "prompt_lookup_max": 4},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def _engine(small: Model) -> AsyncIterator[Worker]:
    stats = SchedulerStats()
    engine = VllmEngine(small, stat_loggers=[stats.factory()])
    await engine.start()
    yield Worker(engine, stats)
    await engine.stop()


@pytest.fixture
def engine(_engine: Worker) -> Worker:
    """The one engine of this module, with no events yet."""
    _engine.events.clear()
    return _engine


def figure(worker: Worker, name: str) -> float:
    return worker.engine.figures()[name]


async def text_of(worker: Worker, model: str, name: str, **params: Any) -> str:
    result = await worker.run(PROMPT, name=name, model=model, max_tokens=40, **params)
    return str(result.output["text"])


async def test_adapters_answer_in_one_batch_as_they_do_alone_and_differ_from_their_base(engine: Worker) -> None:
    aliases = engine.engine.model.aliases
    alone = {alias: await text_of(engine, alias, alias) for alias in aliases}
    assert len(set(alone.values())) == 3
    asked = [alias for _ in range(4) for alias in aliases]
    engine.stats.steps.clear()
    together = await asyncio.gather(*(text_of(engine, alias, f"{alias}{n}") for n, alias in enumerate(asked)))
    assert dict(zip(asked, together, strict=True)) == alone
    assert [alone[alias] for alias in asked] == together
    assert max(running for _, running, _ in engine.stats.steps) > 3, "they shared steps"


async def test_an_adapters_interrupted_answer_goes_on_as_the_adapters(engine: Worker) -> None:
    whole = await text_of(engine, "sql", "whole")
    assert await text_of(engine, "sql", "job") == whole
    del engine.events["job"][3:]
    assert await text_of(engine, "sql", "job", claims=2) == whole


async def test_ngram_speculation_is_accepted_and_changes_no_answer(engine: Worker, worker: Worker) -> None:
    """`worker` has the same weights without speculation. A penalty below 1 makes the random model repeat itself."""
    before = engine.engine.figures()
    for n in (30, 60, 120):
        params: dict[str, Any] = {"max_tokens": n, "repetition_penalty": 0.6}
        plain = await worker.run(PROMPT, name=f"plain{n}", **params)
        assert (await engine.run(PROMPT, name=f"fast{n}", **params)).output == plain.output
    guessed = figure(engine, "draft_tokens") - before["draft_tokens"]
    accepted = figure(engine, "accepted_tokens") - before["accepted_tokens"]
    print(f"n-gram: {accepted} of {guessed} guesses accepted")
    assert 0 < accepted <= guessed


async def test_a_prompt_that_begins_like_an_earlier_one_is_not_computed_again(engine: Worker) -> None:
    prefix = "A long system prompt that all requests share. " * 8
    await engine.run({"prompt": prefix + "first"}, name="first", max_tokens=2)
    before = engine.engine.figures()
    await engine.run({"prompt": prefix + "second"}, name="second", max_tokens=2)
    hits = figure(engine, "prefix_hit_tokens") - before["prefix_hit_tokens"]
    assert hits == len(prefix) // BLOCK * BLOCK == 2 * BLOCK
    assert figure(engine, "prefix_tokens") - before["prefix_tokens"] == len(prefix + "second")


async def test_a_high_job_starts_in_a_full_batch_before_any_low_one_ends(engine: Worker) -> None:
    preemptions = figure(engine, "preemptions")
    ended: list[str] = []

    async def job(name: str, priority: Priority, tokens: int) -> None:
        asked = {"prompt": f"{name}: tell"}
        await engine.run(asked, name=name, priority=priority, max_tokens=tokens, min_tokens=tokens)
        ended.append(name)

    low = [asyncio.create_task(job(f"low{n}", "low", 600)) for n in range(24)]
    await full(engine)
    assert ended == []
    await job("high", "high", 150)
    assert ended == ["high"]
    # vLLM tells of a preemption with the next token of the request that was put back.
    async with asyncio.timeout(60):
        while figure(engine, "preemptions") == preemptions:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    for task in low:
        task.cancel()
    await asyncio.wait(low)


async def full(worker: Worker) -> None:
    """Wait until requests stand before the batch because the KV cache has no room for them."""
    async with asyncio.timeout(30):
        while not (figure(worker, "waiting") and figure(worker, "kv_cache_usage") > 0.9):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_with_a_small_cache_fewer_jobs_are_admitted_and_preemptions_fall(engine: Worker) -> None:
    """The same 30 jobs: 24 at once, and as many at once as the engine has learnt to admit meanwhile."""
    engine.engine.stats.admission.allowed = 24
    preempted, most = {}, {}
    for name, limit in (("fixed", lambda: 24), ("adapting", engine.engine.admits)):
        before = figure(engine, "preemptions")
        most[name] = await run_30(engine, name, limit)
        preempted[name] = figure(engine, "preemptions") - before
    print(f"preemptions {preempted}, jobs at once {most}")
    assert preempted["adapting"] < 0.75 * preempted["fixed"]
    assert 2 <= most["adapting"] < most["fixed"] == 24


async def run_30(worker: Worker, name: str, limit: Callable[[], int]) -> int:
    """Run 30 jobs, never starting one when so many run already; returns how many ran at once."""
    running: set[asyncio.Task[Any]] = set()
    jobs = []
    most = 0
    for number in range(30):
        while len(running) >= limit():
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        asked = {"prompt": f"{name} {number}: tell me"}
        jobs.append(asyncio.create_task(worker.run(asked, name=f"{name}{number}", max_tokens=270, min_tokens=270)))
        running.add(jobs[-1])
        most = max(most, len(running))
    assert {result.usage["completion_tokens"] for result in await asyncio.gather(*jobs)} == {270}
    return most


async def test_draft_speculation_is_accepted_and_changes_no_answer(small: Model, worker: Worker) -> None:
    """The model is its own draft here: most of its guesses are right."""
    drafted = replace(
        small,
        adapters={},
        speculative={"method": "draft_model", "model": small.weights, "num_speculative_tokens": 3},
        options=small.options | {"kv_cache_memory_bytes": 1 << 26},
    )
    plain = await worker.run(PROMPT, name="plain", max_tokens=100)
    engine = VllmEngine(drafted)
    await engine.start()
    try:
        fast = await Worker(engine, SchedulerStats()).run(PROMPT, max_tokens=100)
    finally:
        await engine.stop()
    assert fast.output == plain.output
    assert 0.5 < engine.figures()["accepted_tokens"] / engine.figures()["draft_tokens"] <= 1
