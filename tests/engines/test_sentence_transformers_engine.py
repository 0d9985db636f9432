from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from workers.engines.sentence_transformers_engine import SentenceTransformersEngine

TEXTS = [
    "A job acknowledged with 2xx survives the death of any process.",
    "short",
    "",
    "Ünïcödé — 日本語 🚀",
    "long " * 400,
    *(f"text number {n} " * (n % 17 + 1) for n in range(120)),
]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _engine(minilm: Model) -> AsyncIterator[SentenceTransformersEngine]:
    engine = SentenceTransformersEngine(minilm)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def engine(_engine: SentenceTransformersEngine) -> SentenceTransformersEngine:
    _engine.batches.clear()
    return _engine


async def first_batch(engine: SentenceTransformersEngine) -> None:
    async with asyncio.timeout(30):
        while not engine.batches:  # noqa: ASYNC110 - a batch announces itself to nobody
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def direct(minilm: Model) -> Any:
    """A direct sentence-transformers call, without anything of ours."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm.weights_path()).encode


async def test_vectors_equal_a_direct_call_whatever_they_were_batched_with(
    engine: SentenceTransformersEngine, direct: Any
) -> None:
    parts = [TEXTS[start : start + 10] for start in range(0, len(TEXTS), 10)]
    results = await asyncio.gather(*map(engine.embed, parts))
    ours = np.concatenate([result.vectors for result in results])
    theirs = direct(TEXTS)
    assert ours.shape == (len(TEXTS), 384)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-5
    assert (ours * theirs).sum(axis=1).min() > 0.9999


async def test_usage_counts_the_tokens_that_the_model_reads(engine: SentenceTransformersEngine) -> None:
    counts = [(await engine.embed([text])).prompt_tokens for text in ("hello world", "word " * 1000)]
    assert counts == [4, 256]  # [CLS] hello world [SEP]; cut at the model's 256


async def test_calls_that_wait_together_go_together(engine: SentenceTransformersEngine) -> None:
    first = asyncio.create_task(engine.embed(["first"]))
    await asyncio.sleep(0)
    others = [engine.embed([f"text {n}"]) for n in range(30)]
    await asyncio.gather(first, *others)
    assert len(engine.batches) <= 3
    assert sum(engine.batches) == 31


async def test_one_text_does_not_wait_behind_anothers_six_hundred(engine: SentenceTransformersEngine) -> None:
    big = asyncio.create_task(engine.embed(["a text of some length, as texts are " * 4] * 600))
    await first_batch(engine)
    await engine.embed(["quick"])
    assert len(engine.batches) <= 3
    big.cancel()
    with pytest.raises(asyncio.CancelledError):
        await big


async def test_a_cancelled_call_drops_out_of_the_batches_to_come(engine: SentenceTransformersEngine) -> None:
    big = asyncio.create_task(engine.embed(["a text of some length, as texts are " * 4] * 600))
    await first_batch(engine)
    big.cancel()
    await asyncio.wait([big])
    await engine.embed(["next"])
    assert sum(engine.batches) < 200


async def test_a_bad_text_fails_its_own_call_only(engine: SentenceTransformersEngine) -> None:
    blocker = asyncio.create_task(engine.embed(["blocker"]))
    await asyncio.sleep(0)
    bad, good = await asyncio.gather(engine.embed(["fine", "\ud800"]), engine.embed(["good"]), return_exceptions=True)
    await blocker
    assert isinstance(bad, JobFailed)
    assert (bad.code, bad.retryable) == ("invalid_request", False)
    assert not isinstance(good, BaseException)
    assert good.vectors.shape == (1, 384)


async def test_a_stopped_engine_says_so_and_can_be_restarted(minilm: Model) -> None:
    engine = SentenceTransformersEngine(minilm)
    with pytest.raises(EngineDead):
        await engine.embed(["too early"])
    await engine.start()
    waiting = [asyncio.create_task(engine.embed(["text"] * 500)) for _ in range(3)]
    await asyncio.sleep(0)
    await engine.stop()
    assert {type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)} == {EngineDead}
    assert not engine.alive
    await engine.restart()
    assert (await engine.embed(["text"])).vectors.shape == (1, 384)
    await engine.stop()
