"""Real engines on CPU, each loaded once for the whole run: a start takes half a minute."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from common.catalogue import Catalogue, Model
from common.jobs import ClaimedJob, JobResult, Priority, Work
from tests.engines.tiny_model import write_tiny_model
from workers.engines.revival import Revival
from workers.engines.vllm_engine import VllmEngine
from workers.generation import generation

SHIPPED = Path(__file__).parents[2] / "ops" / "models.toml"
CONTEXT = 256


def pytest_unconfigure() -> None:
    """vLLM leaves its ZeroMQ context to the garbage collector, which pytest calls at its very end."""
    warnings.filterwarnings("ignore", "Unclosed context", ResourceWarning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All in one event loop, which the engines live in; with time to start, and deaf to vLLM's own warnings."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            if isinstance(item, pytest.Function) and asyncio.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("default"))


class SchedulerStats:
    """What vLLM's scheduler says of itself at each step, with the time it was heard."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int, float]] = []  # (when, running requests, share of the KV cache in use)

    def factory(self) -> Any:
        """The class that vLLM asks for."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        steps = self.steps

        class Recorder(StatLoggerBase):  # type: ignore[misc]
            def __init__(self, *_: Any, **__: Any) -> None: ...

            def log_engine_initialized(self) -> None: ...

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    stats = (scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage)
                    steps.append((time.monotonic(), *stats))

        return Recorder

    async def until_running(self, count: int) -> tuple[float, float]:
        """Wait for a step with so many running requests; returns when it was and the KV cache's use."""
        async with asyncio.timeout(30):
            while not self.steps or self.steps[-1][1] != count:  # noqa: ASYNC110 - nobody is told of a step
                await asyncio.sleep(0.001)
        return self.steps[-1][0], self.steps[-1][2]


class Worker:
    """The job function's context around the real engine."""

    def __init__(self, engine: VllmEngine, stats: SchedulerStats) -> None:
        self.engine = engine
        self.stats = stats
        self.revival = Revival(engine)
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.stop_after: int | None = None
        self.is_read: Callable[[int], bool] = lambda events: True  # whether somebody reads, after so many events
        self.very_first: JobResult | None = None  # a fresh engine's answer to a prompt of one token

    async def run(
        self,
        asked: dict[str, Any],
        *,
        claims: int = 1,
        name: str = "job",
        model: str = "",
        priority: Priority = "normal",
        **params: Any,
    ) -> JobResult:
        """Run one generation job, of an adapter when `model` names one."""
        alias, lease = self.engine.model.alias, f"{name}:2p"
        raw = msgspec.json.encode(Work(asked, {"temperature": 0, **params}, model="" if model == alias else model))
        job = ClaimedJob(name, lease, claims, 0, 0, priority, "ann", 60.0, raw, "generation", alias)
        return await generation(self.context, job)

    async def interrupted(self, asked: dict[str, Any], after: int, **params: Any) -> None:
        """Leave the first so many events of a delivery that died: one that is cut off at the first, else its later
        ones are forgotten, since on a busy machine an answer is made of fewer events and would end before."""
        self.events.pop("job", None)
        self.stop_after = 1 if after == 1 else None
        with pytest.raises(InterruptedError) if after == 1 else nullcontext():
            await self.run(asked, **params)
        self.stop_after = None
        del self.events["job"][after:]

    @property
    def context(self) -> dict[str, Any]:
        return {
            "model": self.engine.model,
            "engine": self.engine,
            "revival": self.revival,
            "emit": self._emit,
            "tell": self._tell,
            "emitted": self._emitted,
        }

    def text(self, name: str = "job") -> str:
        return "".join(event["text"] for event in self.events[name])

    async def _emit(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        self._tell(job, event, data)

    def _tell(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> bool:
        events = self.events.setdefault(job.id, [])
        events.append(data)
        if len(events) == self.stop_after:
            raise InterruptedError
        return self.is_read(len(events))

    async def _emitted(self, job: ClaimedJob) -> list[dict[str, Any]]:
        return list(self.events.get(job.id, []))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a random Llama whose every token is one byte."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", positions=CONTEXT)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    """It as an entry of the catalogue."""
    options = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 1024 * 1024}
    return Model("tiny", "generation", "vllm", str(tiny_folder), CONTEXT, 64, options=options, tool_parser="hermes")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _vllm(tiny_model: Model) -> AsyncIterator[Worker]:
    stats = SchedulerStats()
    engine = VllmEngine(tiny_model, stat_loggers=[stats.factory()])
    await engine.start()
    worker = Worker(engine, stats)
    worker.very_first = await worker.run({"prompt": "a"}, max_tokens=1)
    yield worker
    await engine.stop()


@pytest.fixture
def worker(_vllm: Worker) -> Worker:
    """The one vLLM engine of this run, with no events yet."""
    _vllm.events.clear()
    _vllm.stop_after = None
    return _vllm


@pytest.fixture(scope="session")
def minilm() -> Model:
    """The embedding model that is shipped."""
    return Catalogue.load(SHIPPED).get("embedding", "minilm")
