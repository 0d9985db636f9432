from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from common.catalogue import Model
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult, Work
from common.settings import load_settings
from workers import embedding as module
from workers.embedding import embedding, unit


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


def rows(result: JobResult) -> Any:
    return np.array(result.output["embeddings"])


async def test_every_text_gets_its_vector_in_order() -> None:
    ctx = await context()
    both = await run(ctx, "first text", "second")
    alone = await run(ctx, "second")
    assert both.output["embeddings"][1] == alone.output["embeddings"][0]
    assert both.output["dimensions"] == len(both.output["embeddings"][0]) == 8
    assert both.usage == {"prompt_tokens": 3, "total_tokens": 3}
    assert msgspec.json.decode(msgspec.json.encode(both))["incomplete"] is False


async def test_vectors_are_as_the_model_gives_them_unless_normalize_is_asked() -> None:
    vectors = np.array([[3, 4], [0, 0]], dtype=np.float32)
    assert np.allclose(unit(vectors), np.array([[0.6, 0.8], [0.0, 0.0]]))
    ctx = await context()
    plain, normalized = await run(ctx, "text"), await run(ctx, "text", normalize=True)
    assert np.allclose(rows(plain), rows(normalized))  # the fake's are unit vectors


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
    await module.on_shutdown(ctx)
    assert not engine.alive
    await module.on_shutdown({})


def test_the_workers_settings_name_the_models_queue_and_slots() -> None:
    settings = module.settings_for(fake_model(), load_settings())
    assert (settings["queue_name"], settings["max_jobs"]) == ("embedding:fake", 4)
