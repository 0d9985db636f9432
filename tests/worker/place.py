"""One queue with what stands around it, in the test's own process; waits have a deadline.

A worker here has the real beat in a task instead of a process (`InlineBeat`), so that a test costs no start of
Python; tests of the beat process itself ask for the real one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from arq.worker import func

from common.jobs import JobRecord, JobSpec
from common.queue import Queue
from common.results import Results
from common.settings import Settings
from scheduler.scheduler import Scheduler
from tests.waiting import until
from workers.beat import Beat, Order
from workers.beat_process import BeatProcess
from workers.worker import Worker

KIND, MODEL = "work", "test"
QUEUE = f"{KIND}:{MODEL}"
DEADLINE_S = 20.0


class InlineBeat(BeatProcess):
    """The beat as a task of the worker's own loop."""

    async def start(self) -> None:
        """Renew once, then go on."""
        self._client = await Queue.connect(Settings.model_validate(self._order["settings"]))
        order = Order(**(self._order | {"about": {"id": self._order["worker"], "slots": 0, "device": "cpu"}}))  # type: ignore[arg-type]
        beat = Beat(self._client, order, self._table)
        beat._tell = lambda lost: self._lost(list(lost))  # type: ignore[method-assign]
        beat._ready = True
        self._keeper = asyncio.create_task(beat.run())

    async def stop(self) -> None:
        """End it."""
        await super().stop()
        await self._client.close()


class Place:
    """A queue, its readers and its workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queue: Queue
        self.results: Results
        self.workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect."""
        self.queue = await Queue.connect(self.settings)
        self.results = Results(self.queue.redis, self.settings)

    async def close(self) -> None:
        """Stop what was started."""
        for worker, task in self.workers:
            await self.stop(worker, task)
        for helper in self._tasks:
            helper.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.results.close()
        await self.queue.close()

    async def stop(self, worker: Worker, task: asyncio.Task[None]) -> None:
        """Drain a worker without a grace."""
        if not task.done():
            worker.handle_sig(signal.SIGTERM)
            worker.handle_sig(signal.SIGTERM)
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, DEADLINE_S)
        await worker.close()

    async def worker(self, function: Any = None, *, named: str = KIND, **arq: Any) -> Worker:
        """Start a worker whose job function is `function`, and return once it takes jobs."""
        worker = self.make(function, named=named, **arq)
        task = asyncio.create_task(worker.async_run())
        self.workers.append((worker, task))
        await until(lambda: task.done() or hasattr(worker, "_table"), "the worker has started")
        return worker

    def make(self, function: Any = None, *, named: str = KIND, **arq: Any) -> Worker:
        """A worker that is not started."""
        functions = [] if function is None else [func(function, name=named)]
        given: dict[str, Any] = {"queue_name": QUEUE, "handle_signals": False, "settings": self.settings}
        return Worker([*functions, *arq.pop("functions", [])], **(given | arq))

    def schedule(self) -> None:
        """Start a scheduler."""
        self._tasks.append(asyncio.create_task(Scheduler(self.queue).run()))

    async def submit(self, **spec: Any) -> str:
        """Submit one job; returns its id."""
        return (await self.submit_many(1, **spec))[0]

    async def submit_many(self, count: int, **spec: Any) -> list[str]:
        """Submit so many of the same."""
        spec = {"kind": KIND, "model": MODEL, "input": {}} | spec
        return [one.id for one in await self.queue.submit_many([JobSpec(**spec)] * count)]

    async def record(self, job_id: str) -> JobRecord:
        """The job's record."""
        return await self.results.record(job_id)

    async def end(self, job_id: str, deadline_s: float = DEADLINE_S) -> JobRecord:
        """The job's record once it is terminal."""
        record = await self.results.wait(job_id, deadline_s)
        assert record.terminal, f"{job_id} is {record.status} after {deadline_s} s"
        return record

    async def ends(self, job_ids: Iterable[str]) -> list[JobRecord]:
        """The records of all, each once it is terminal."""
        return list(await asyncio.gather(*(self.end(job_id) for job_id in job_ids)))

    async def output(self, job_id: str) -> Any:
        """The stored result of a completed job."""
        import json

        stored = await self.results.result(job_id)
        assert stored is not None, job_id
        assert stored.output is not None, stored.record
        return json.loads(bytes(stored.output))

    async def status(self, job_id: str, *statuses: str) -> JobRecord:
        """The record once the job is in one of these states."""

        async def there() -> bool:
            return (await self.record(job_id)).status in statuses

        await until(there, f"{job_id} is {' or '.join(statuses)}")
        return await self.record(job_id)

    async def leases(self) -> int:
        """Leases that Redis knows."""
        return int(await self.queue.redis.zcard(f"{self.queue.keys.queue(QUEUE)}leases"))


class Gate:
    """A job function that counts its runs and holds each until it is let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.now = 0
        self.most = 0
        self.open = asyncio.Event()

    async def __call__(self, ctx: dict[str, Any]) -> str:
        """Hold until open."""
        self.started.append(ctx["job_id"])
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped.append(ctx["job_id"])
            raise
        finally:
            self.now -= 1
        return "held"

    @property
    def function(self) -> Any:
        """The same as a coroutine function, which arq insists on."""

        async def hold(ctx: dict[str, Any]) -> str:
            return await self(ctx)

        return hold
