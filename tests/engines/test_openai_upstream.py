"""The engine of hosted models against vLLM's own OpenAI server, which runs the model that the local engine runs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from common.catalogue import Model
from common.errors import JobFailed
from tests.engines.conftest import CONTEXT, Worker
from tests.redis_server import free_port
from tests.waiting import until
from workers.engines.openai_engine import OpenAIGenerationEngine
from workers.engines.vllm_engine import ARGUMENTS, ENVIRONMENT

CONCURRENCY = 3
KEY = "token-of-the-tests"
PROMPTS = ["count", "The quick brown fox", "ä" * 20, "one two three four five six seven eight nine ten"]


class Server:
    """vLLM's OpenAI server in a process of its own."""

    def __init__(self, weights: str, log: Path) -> None:
        self.port = free_port()
        self.log = log
        arguments = {
            "--model": weights, "--served-model-name": "upstream", "--host": "127.0.0.1", "--port": self.port,
            "--max-model-len": CONTEXT, "--kv-cache-memory-bytes": 64 * 1024 * 1024, "--api-key": KEY,
            "--worker-extension-cls": ARGUMENTS["worker_extension_cls"],
        }  # fmt: skip
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        command += [str(part) for pair in arguments.items() for part in pair]
        environment = {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    def wait(self) -> None:
        """Return once it serves."""
        deadline = time.monotonic() + 450
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"it does not serve: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it and its engine core."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    async def metric(self, pattern: str) -> float:
        """A number of its /metrics; the labels are part of the pattern."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{self.port}/metrics")).text
        found = re.search(rf"^{pattern} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


RUNNING = r"vllm:num_requests_running\{[^}]*\}"
GENERATED = r"vllm:generation_tokens_total\{[^}]*\}"


@pytest.fixture(scope="module")
def server(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tiny_model.weights, tmp_path_factory.mktemp("server") / "log")
    try:
        yield server  # it loads while the local engine does
    finally:
        server.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def hosted(server: Server, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    """A worker's context around the hosted model; the fixture `worker` is the same model's local engine."""
    await asyncio.to_thread(server.wait)
    monkeypatch.setenv("UPSTREAM_KEY", KEY)
    options = {
        "base_url": f"http://127.0.0.1:{server.port}/v1", "api_key_env": "UPSTREAM_KEY",
        "concurrency": CONCURRENCY, "extensions": True,
    }  # fmt: skip
    model = Model("hosted", "generation", "openai", "upstream", CONTEXT, CONCURRENCY, options=options)
    engine = OpenAIGenerationEngine(model)
    await engine.start()
    yield Worker(engine, worker.stats)  # type: ignore[arg-type]
    await engine.stop()


@pytest.mark.parametrize("asked", [{"prompt": prompt} for prompt in PROMPTS] + [
    {"messages": [{"role": "user", "content": "count"}]},
])  # fmt: skip
async def test_an_answer_is_the_local_engines_streamed_and_counted(
    hosted: Worker, worker: Worker, asked: dict[str, Any]
) -> None:
    local = await worker.run(asked, max_tokens=40)
    result = await hosted.run(asked, max_tokens=40)
    assert (result.output, result.usage, result.incomplete) == (local.output, local.usage, local.incomplete)
    assert hosted.text() == result.output["text"]
    assert len(hosted.events["job"]) > 1, "it came in pieces; a busy server joins some"


async def test_parameters_arrive(hosted: Worker, worker: Worker) -> None:
    asked = {"prompt": "count"}
    whole = (await worker.run(asked, max_tokens=40)).output["text"]
    params: dict[str, Any] = {
        "max_tokens": 60,
        "min_tokens": 50,
        "ignore_eos": True,
        "repetition_penalty": 1.3,
        "seed": 5,
    }
    assert (await hosted.run(asked, **params)).output == (await worker.run(asked, **params)).output
    stop = whole[10:13]
    local = await worker.run(asked, max_tokens=40, stop=[stop])
    result = await hosted.run(asked, max_tokens=40, stop=[stop])
    assert result.output == local.output == {"text": whole[: whole.index(stop)], "finish_reason": "stop"}


@pytest.mark.parametrize("params", [{"regex": "[a-c]{5}"}, {"choice": ["alpha", "bravo"]}])
async def test_a_structure_is_held_to(hosted: Worker, worker: Worker, params: dict[str, Any]) -> None:
    asked = {"prompt": "count"}
    local = await worker.run(asked, max_tokens=20, **params)
    assert (await hosted.run(asked, max_tokens=20, **params)).output == local.output


async def test_a_cancel_frees_the_upstream_at_once(hosted: Worker, server: Server) -> None:
    before = await server.metric(GENERATED)
    task = asyncio.create_task(hosted.run({"prompt": "count"}, max_tokens=250, ignore_eos=True))
    await until(lambda: bool(hosted.events), "it has begun", deadline_s=120)
    task.cancel()
    await asyncio.wait([task])
    await hosted.run({"prompt": "go on"}, name="next", max_tokens=1)  # after it the numbers are those of now
    assert await server.metric(RUNNING) == 0
    assert 1 <= await server.metric(GENERATED) - before < 200, "it did not go on to its 250 tokens"


async def test_it_never_has_more_of_ours_than_it_takes_at_once(hosted: Worker, server: Server) -> None:
    most = 0.0
    jobs = [hosted.run({"prompt": str(n)}, name=f"job {n}", max_tokens=100, ignore_eos=True) for n in range(9)]
    all_of_them = asyncio.gather(*jobs)
    while not all_of_them.done():
        most = max(most, await server.metric(RUNNING))
    assert {result.usage["completion_tokens"] for result in await all_of_them} == {100}
    assert 1 < most <= CONCURRENCY


@pytest.mark.parametrize(
    "asked", [{"prompt": "The quick brown fox"}, {"messages": [{"role": "user", "content": "count"}]}]
)
async def test_a_job_that_broke_off_goes_on_with_the_same_text(hosted: Worker, asked: dict[str, Any]) -> None:
    whole = await hosted.run(asked, max_tokens=40, name="whole")
    await hosted.interrupted(asked, after=1, max_tokens=40)
    assert 0 < len(hosted.text()) < len(whole.output["text"])
    result = await hosted.run(asked, max_tokens=40, claims=2)
    assert result == whole
    assert hosted.text() == whole.output["text"]


async def test_what_one_engine_began_the_other_ends(hosted: Worker, worker: Worker) -> None:
    asked = {"prompt": "The quick brown fox"}
    whole = await worker.run(asked, max_tokens=40, name="whole")
    for first, second in ((worker, hosted), (hosted, worker)):
        await first.interrupted(asked, after=2, max_tokens=40)
        shown = first.text()
        second.events["job"] = list(first.events["job"])
        result = await second.run(asked, max_tokens=40, claims=2)
        assert result.output["text"] == second.text()
        assert second.text().startswith(shown)
        # The local engine goes on from the text; half characters in it, which this model makes, are lost on the way,
        # and what follows may be anything, the end too.
        assert second is worker or result.output == whole.output


async def test_what_it_refuses_fails_for_good_in_its_words(hosted: Worker) -> None:
    with pytest.raises(JobFailed) as caught:
        await hosted.run({"prompt": "x" * 300}, max_tokens=1)
    assert (caught.value.code, caught.value.retryable) == ("upstream_refused", False)
    assert "maximum" in caught.value.message or "length" in caught.value.message
