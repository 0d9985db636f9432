"""The embedding engines on the real model: both keep the same promises and give the vectors of a direct `encode`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from common.catalogue import Model
from common.errors import EngineDead, JobFailed, SettingsInvalid
from common.jobs import ClaimedJob, Work
from workers.embedding import embedding
from workers.engines import embedding_engine
from workers.engines.batching import BatchingEngine
from workers.engines.onnx_engine import OnnxEngine
from workers.engines.revival import Revival

TEXTS = [
    "A job acknowledged with 2xx survives the death of any process.",
    "short",
    "",
    "Ünïcödé — 日本語 🚀",
    "long " * 400,
    *(f"text number {n} " * (n % 17 + 1) for n in range(120)),
]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the graph is kept that the first start makes."""
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["sentence-transformers", "onnx"])
async def _engine(request: pytest.FixtureRequest, minilm: Model, data_dir: Path) -> AsyncIterator[BatchingEngine]:
    engine = embedding_engine(replace(minilm, engine=request.param), data_dir)
    assert isinstance(engine, BatchingEngine)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def engine(_engine: BatchingEngine) -> BatchingEngine:
    _engine.batches.clear()
    return _engine


async def first_batch(engine: BatchingEngine) -> None:
    async with asyncio.timeout(30):
        while not engine.batches:  # noqa: ASYNC110 - a batch announces itself to nobody
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def direct(minilm: Model) -> Any:
    """A direct sentence-transformers call, without anything of ours."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm.weights_path()).encode


@pytest.fixture(scope="session")
def expected(direct: Any) -> Any:
    """What a direct call makes of the texts."""
    return direct(TEXTS)


async def test_vectors_equal_a_direct_call_whatever_they_were_batched_with(
    engine: BatchingEngine, expected: Any
) -> None:
    parts = [TEXTS[start : start + 10] for start in range(0, len(TEXTS), 10)]
    results = await asyncio.gather(*map(engine.embed, parts))
    ours = np.concatenate([result.vectors for result in results])
    assert ours.shape == (len(TEXTS), 384)
    assert ours.dtype == np.float32
    assert np.abs(ours - expected).max() < 1e-5
    assert (ours * expected).sum(axis=1).min() > 0.9999


async def test_usage_counts_the_tokens_that_the_model_reads(engine: BatchingEngine) -> None:
    counts = [(await engine.embed([text])).prompt_tokens for text in ("hello world", "word " * 1000)]
    assert counts == [4, 256]  # [CLS] hello world [SEP]; cut at the model's 256


async def test_calls_that_wait_together_go_together(engine: BatchingEngine) -> None:
    first = asyncio.create_task(engine.embed(["first"]))
    await asyncio.sleep(0)
    others = [engine.embed([f"text {n}"]) for n in range(30)]
    await asyncio.gather(first, *others)
    assert len(engine.batches) <= 3
    assert sum(engine.batches) == 31


async def test_one_text_does_not_wait_behind_anothers_six_hundred(engine: BatchingEngine) -> None:
    big = asyncio.create_task(engine.embed(["a text of some length, as texts are " * 4] * 600))
    await first_batch(engine)
    await engine.embed(["quick"])
    assert len(engine.batches) <= 3
    big.cancel()
    with pytest.raises(asyncio.CancelledError):
        await big


async def test_a_cancelled_call_drops_out_of_the_batches_to_come(engine: BatchingEngine) -> None:
    big = asyncio.create_task(engine.embed(["a text of some length, as texts are " * 4] * 600))
    await first_batch(engine)
    big.cancel()
    await asyncio.wait([big])
    await engine.embed(["next"])
    assert sum(engine.batches) < 200


async def test_a_bad_text_fails_its_own_call_only(engine: BatchingEngine) -> None:
    blocker = asyncio.create_task(engine.embed(["blocker"]))
    await asyncio.sleep(0)
    bad, good = await asyncio.gather(engine.embed(["fine", "\ud800"]), engine.embed(["good"]), return_exceptions=True)
    await blocker
    assert isinstance(bad, JobFailed)
    assert (bad.code, bad.retryable) == ("invalid_request", False)
    assert not isinstance(good, BaseException)
    assert good.vectors.shape == (1, 384)


async def test_texts_that_were_cut_are_told_with_the_tokens_they_had(engine: BatchingEngine) -> None:
    batch = await engine.embed(["short", "word " * 300, "word " * 254])
    assert [(cut.index, cut.tokens) for cut in batch.truncated] == [(1, 302)]
    assert batch.prompt_tokens == 3 + 256 + 256
    with pytest.raises(JobFailed, match=r"texts\[1\] has 302 tokens, the model takes 256"):
        await engine.embed(["short", "word " * 300], truncate=False)


async def test_a_job_with_a_prompt_gives_what_a_direct_call_with_that_prompt_does(
    engine: BatchingEngine, direct: Any
) -> None:
    texts = ["how are jobs ordered?", "what is a lease?"]
    model = replace(engine.model, prompts={"query": "query: "})
    raw = msgspec.json.encode(Work({"texts": texts}, {"input_type": "query"}))
    job = ClaimedJob("job_00x", "job_00x:2p", 1, 0, 0, "normal", "ann", 60.0, raw, "embedding", "minilm")
    result = await embedding({"model": model, "engine": engine, "revival": Revival(engine)}, job)
    assert result.vectors is not None
    ours = np.frombuffer(result.vectors.data, "<f4").reshape(2, 384)
    assert np.abs(ours - direct(texts, prompt="query: ")).max() < 1e-5
    assert np.abs(ours - direct(texts)).max() > 0.01


def graphs(folder: Path) -> dict[str, int]:
    """The graphs that are kept, and when they were made."""
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


async def test_a_graph_is_made_once_and_found_again(minilm: Model, data_dir: Path) -> None:
    made = graphs(data_dir)
    assert list(made) == ["model.onnx"]
    again = OnnxEngine(replace(minilm, engine="onnx"), data_dir)
    await again.start()
    assert (await again.embed(["text"])).vectors.shape == (1, 384)
    await again.stop()
    assert graphs(data_dir) == made


async def test_weights_of_which_no_graph_can_be_made_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text('{"model_type": "nobody-has-this"}')
    model = Model("odd", "embedding", "onnx", str(tmp_path / "weights"), 64, 4)
    with pytest.raises(SettingsInvalid, match="odd: engine onnx: no graph could be made of"):
        await OnnxEngine(model, tmp_path / "data").start()
    assert graphs(tmp_path / "data") == {}


async def test_a_stopped_engine_says_so_and_can_be_restarted(minilm: Model, data_dir: Path) -> None:
    engine = OnnxEngine(replace(minilm, engine="onnx"), data_dir)
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
