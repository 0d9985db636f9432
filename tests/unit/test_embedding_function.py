from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from common.catalogue import Model
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult, Work
from common.queue import Outcome
from common.settings import load_settings
from common.vectors import rendered
from workers import embedding as module
from workers.embedding import embedding, unit
from workers.serving import on_shutdown


def fake_model(**options: Any) -> Model:
    return Model("fake", "embedding", "fake", "", 64, 4, options=options)


def claimed(*texts: str, **params: Any) -> ClaimedJob:
    raw = msgspec.json.encode(Work({"texts": list(texts)}, params))
    return ClaimedJob("job_00x", "job_00x:2p", 1, 0, 0, "normal", "ann", 60.0, raw, "embedding", "fake")


async def context(model: Model | None = None) -> dict[str, Any]:
    ctx: dict[str, Any] = module.settings_for(model or fake_model(), load_settings())["ctx"]
    await module.on_startup(ctx)
    return ctx


async def run(ctx: dict[str, Any], *texts: str, **params: Any) -> JobResult:
    return await embedding(ctx, claimed(*texts, **params))


async def plain(*texts: str) -> JobResult:
    return await run(await context(), *texts)


def read(result: JobResult) -> Any:
    """The output as a reader gets it."""
    outcome = Outcome.done(claimed(), 1, result)
    return msgspec.json.decode(rendered(outcome.body))


def rows(result: JobResult) -> Any:
    assert result.vectors is not None
    return np.frombuffer(result.vectors.data, "<f4").reshape(-1, result.vectors.dimensions)


async def test_every_text_gets_its_vector_in_order() -> None:
    ctx = await context()
    both = await run(ctx, "first text", "second")
    alone = await run(ctx, "second")
    assert (rows(both)[1] == rows(alone)[0]).all()
    assert rows(both).shape == (2, 8)
    assert both.output == {"dimensions": 8}
    assert both.usage == {"prompt_tokens": 3, "total_tokens": 3}


async def test_vectors_are_as_the_model_gives_them_unless_normalize_is_asked() -> None:
    vectors = np.array([[3, 4], [0, 0]], dtype=np.float32)
    assert np.allclose(unit(vectors), np.array([[0.6, 0.8], [0.0, 0.0]]))
    ctx = await context()
    plain, normalized = await run(ctx, "text"), await run(ctx, "text", normalize=True)
    assert np.allclose(rows(plain), rows(normalized))  # the fake's are unit vectors


async def test_a_reader_gets_the_engines_float32_as_numbers_or_as_base64() -> None:
    ctx = await context()
    result, packed = await run(ctx, "one", "two"), await run(ctx, "one", "two", encoding_format="base64")
    numbers = np.array(read(result)["embeddings"], np.float32)
    assert (numbers == rows(result)).all()
    texts = read(packed)["embeddings"]
    assert all((np.frombuffer(base64.b64decode(texts[i]), "<f4") == numbers[i]).all() for i in range(2))
    assert read(packed)["dimensions"] == 8


async def test_vectors_are_stored_as_their_bytes() -> None:
    result = await run(await context(fake_model(dimensions=384)), "text")
    body = Outcome.done(claimed(), 1, result).body
    assert rows(result).tobytes() in body
    assert len(body) < 384 * 4 + 100


async def test_dimensions_cuts_the_vectors_and_makes_them_unit_vectors_again() -> None:
    ctx = await context(fake_model(dimensions=32))
    whole, cut = rows(await run(ctx, "text")), rows(await run(ctx, "text", dimensions=4))
    assert cut.shape == (1, 4)
    assert np.allclose(cut, unit(whole[:, :4]))
    assert np.allclose(np.linalg.norm(cut, axis=1), 1)


async def test_a_text_that_was_cut_is_told_by_place_and_tokens() -> None:
    ctx = await context()
    result = await run(ctx, "short", "word " * 100, "word " * 64)
    assert read(result)["truncated"] == [{"index": 1, "tokens": 100}]
    assert result.usage["prompt_tokens"] == 1 + 64 + 64
    with pytest.raises(JobFailed, match=r"texts\[1\] has 100 tokens, the model takes 64") as caught:
        await run(ctx, "short", "word " * 100, truncate=False)
    assert (caught.value.code, caught.value.retryable) == ("text_too_long", False)


async def test_the_prompt_of_the_input_type_goes_before_each_text() -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    ctx = await context(replace(fake_model(), prompts=prompts, default_prompt="passage"))
    asked, unsaid = await run(ctx, "a", "b", input_type="query"), await run(ctx, "a", "b")
    assert (rows(asked) == rows(await plain("query: a", "query: b"))).all()
    assert (rows(unsaid) == rows(await plain("passage: a", "passage: b"))).all()
    with pytest.raises(JobFailed, match="input_type 'title' is not one of fake's: query, passage"):
        await run(ctx, "a", input_type="title")


async def test_engine_death_is_retryable_and_the_next_job_finds_a_new_engine() -> None:
    ctx = await context(fake_model(delay_s=0.001))
    engine: Any = ctx["engine"]
    task = asyncio.create_task(run(ctx, "text"))
    await asyncio.sleep(0)
    engine.die()
    with pytest.raises(JobFailed) as caught:
        await task
    assert (caught.value.code, caught.value.retryable) == ("engine_died", True)
    assert (await run(ctx, "text")).output["dimensions"] == 8
    assert engine.starts == 2


async def test_startup_and_shutdown_keep_the_engine_in_the_context() -> None:
    ctx = await context()
    engine: Any = ctx["engine"]
    assert type(engine).__name__ == "FakeEmbeddingEngine"
    assert engine.alive
    await on_shutdown(ctx)
    assert not engine.alive
    await on_shutdown({})


def test_the_workers_settings_name_the_models_queue_and_slots() -> None:
    settings = module.settings_for(fake_model(), load_settings())
    assert (settings["queue_name"], settings["max_jobs"]) == ("embedding:fake", 4)
