"""Images in a conversation, on a real vision model of vLLM with made-up weights."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common.catalogue import Model
from common.errors import JobFailed
from tests.engines.conftest import SchedulerStats, Worker
from tests.engines.tiny_vision_model import IMAGE_TOKENS, SIZE, write_tiny_vision_model
from workers.engines.vllm_engine import VllmEngine

pytestmark = pytest.mark.slow  # an engine of its own


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def seeing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    folder = write_tiny_vision_model(tmp_path_factory.mktemp("vision") / "model")
    options = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 1024 * 1024}
    engine = VllmEngine(Model("seeing", "generation", "vllm", str(folder), 256, 4, options=options, vision=True))
    await engine.start()
    yield Worker(engine, SchedulerStats())
    await engine.stop()


def picture(seed: int) -> dict[str, Any]:
    """A part with a picture of noise."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*pictures: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *pictures]}]}


def logprobs(result: Any) -> list[float]:
    return [entry["logprob"] for entry in result.output["logprobs"]]


async def test_what_is_in_an_image_reaches_the_model(seeing: Worker) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": True}
    none = await seeing.run({"messages": [{"role": "user", "content": "What is it?"}]}, name="none", **asked)
    first = await seeing.run(chat(picture(1)), name="first", **asked)
    again = await seeing.run(chat(picture(1)), name="again", **asked)
    other = await seeing.run(chat(picture(2)), name="other", **asked)
    assert int(first.usage["prompt_tokens"]) == int(none.usage["prompt_tokens"]) + IMAGE_TOKENS
    assert logprobs(again) == pytest.approx(logprobs(first), abs=1e-3)
    assert max(abs(a - b) for a, b in zip(logprobs(first), logprobs(other), strict=True)) > 0.005


async def test_an_answer_about_an_image_goes_on_after_an_interruption(seeing: Worker) -> None:
    whole = await seeing.run(chat(picture(1)), name="whole", max_tokens=12)
    await seeing.interrupted(chat(picture(1)), after=3, max_tokens=12)
    again = await seeing.run(chat(picture(1)), max_tokens=12, claims=2)
    assert again.usage == whole.usage
    assert seeing.text() == again.output["text"] == whole.output["text"]


async def test_what_is_no_image_fails_the_job_for_good(seeing: Worker) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(JobFailed) as caught:
        await seeing.run(chat(broken), name="broken", max_tokens=4)
    assert (caught.value.code, caught.value.retryable) == ("invalid_request", False)
