"""Which prompts are made into tokens on the event loop; `tests/engines` has the real vLLM."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from workers.engines.protocol import GenerationRequest
from workers.engines.vllm_prompts import SHORT, Prompts

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


class FakeRenderer:
    """Stands in for vLLM's; what goes to a thread is through when `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.asked: list[str] = []

    def render_cmpl(self, prompts: list[Any]) -> list[Any]:
        self.asked.append("here")
        return prompts

    def render_chat(self, conversations: list[Any], params: Any) -> tuple[Any, list[Any]]:
        self.asked.append("here")
        return None, conversations

    async def render_cmpl_async(self, prompts: list[Any]) -> list[Any]:
        self.asked.append("thread")
        await self.release.wait()
        return prompts

    async def render_chat_async(self, conversations: list[Any], params: Any) -> tuple[Any, list[Any]]:
        self.asked.append("thread")
        await self.release.wait()
        return None, conversations


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> FakeRenderer:
    for name in ("vllm", "vllm.renderers", "vllm.renderers.inputs", "vllm.renderers.inputs.preprocess"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.renderers"].ChatParams = lambda **_: None  # type: ignore[attr-defined]
    sys.modules["vllm.renderers.inputs.preprocess"].parse_model_prompt = lambda _, prompt: prompt  # type: ignore[attr-defined]
    return FakeRenderer()


def prompts_of(renderer: FakeRenderer) -> Prompts:
    return Prompts(SimpleNamespace(renderer=renderer, model_config=None))


def conversation(content: Any, **more: Any) -> GenerationRequest:
    return GenerationRequest(messages=[{"role": "user", "content": content}], max_tokens=1, **more)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (GenerationRequest(prompt="x" * SHORT, max_tokens=1), "here"),
        (GenerationRequest(prompt="x" * (SHORT + 1), max_tokens=1), "thread"),
        (conversation("x" * SHORT), "here"),
        (conversation("x" * (SHORT + 1)), "thread"),
        (conversation(IMAGE), "thread"),
        (conversation(None), "thread"),
        (conversation("x", tools=[{"type": "function", "function": {"name": "f"}}]), "thread"),
    ],
)
async def test_what_is_short_stays_on_the_loop(renderer: FakeRenderer, request_: GenerationRequest, where: str) -> None:
    renderer.release.set()
    await prompts_of(renderer).rendered(request_)
    assert renderer.asked == [where]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_loop_does_not_wait_for_a_tokenizer_that_a_thread_has(
    renderer: FakeRenderer, cancelled: bool
) -> None:
    prompts = prompts_of(renderer)
    short = GenerationRequest(prompt="x", max_tokens=1)
    long = asyncio.create_task(prompts.rendered(GenerationRequest(prompt="x" * 9_999, max_tokens=1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if cancelled:  # the thread goes on
        long.cancel()
    beside = asyncio.create_task(prompts.rendered(short))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    renderer.release.set()
    await asyncio.gather(long, beside, return_exceptions=True)
    await prompts.rendered(short)
    assert renderer.asked == ["thread", "thread", "here"]
