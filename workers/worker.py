"""The worker: arq's shell around jobs that come from Redis Streams.

arq gives the settings classes, the function registry, `ctx`, hooks, `Retry`, cron arithmetic, burst mode and the
signals' registration. Where jobs come from, how they are leased, committed and given back is here: one loop
claims, one writes, one listens for jobs to stop, and a process of its own keeps the leases (`workers/beat.py`).
A worker never holds more jobs than it has slots: a slot is free again when its job's end is stored.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from arq.worker import FailedJobs, Retry
from arq.worker import Worker as ArqWorker
from redis.exceptions import RedisError

from common.errors import JobFailed, NotNow
from common.heap import settle_heap
from common.jobs import ClaimedJob, JobResult, decode, encode
from common.queue import Answer, Event, Outcome, Queue
from common.results import Results
from common.settings import Settings
from workers.beat_process import BeatProcess
from workers.loading import announced
from workers.meter import Meter
from workers.outbox import Outbox, patiently
from workers.run import Run
from workers.settings_class import effective_settings, get_kwargs
from workers.slots import SlotTable
from workers.ticks import submit_ticks

log = logging.getLogger("jarvis.worker")

#: So many slots are filled by one claim: an engine computes in one pass what begins together, and it ends together.
FEW_SLOTS = 16


class Worker(ArqWorker):
    """`arq.worker.Worker` on Streams. Takes arq's settings, plus `settings` (ours).

    `queue_name` is `<kind>:<model>`. The function that runs a job is the one named like its kind. A function whose
    second parameter is called `job` gets the ClaimedJob; any other gets the fields of the job's input by name.
    """

    def __init__(self, functions: Any = (), *, settings: Settings | None = None, **arq_settings: Any) -> None:
        self.settings = effective_settings(settings, arq_settings)
        arq_settings.setdefault("job_completion_wait", self.settings.grace_s)
        # Nothing of ours goes through arq's serializer; should anything ever, it is not pickle.
        arq_settings.update(job_serializer=encode, job_deserializer=decode)
        super().__init__(functions, **arq_settings)
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"  # never used again
        self.running: dict[str, Run] = {}
        self._suspects: list[Run] = []
        self._meter = Meter()
        self.stale = 0
        self._started_at = time.time()
        self._takes_job = {name: _takes_job(f.coroutine) for name, f in self.functions.items()}
        # Three batches in flight, so that Redis and Python overlap; but not for few slots.
        self._chunk = max(self.max_jobs // 3, min(self.max_jobs, FEW_SLOTS))
        self._slot_free = asyncio.Event()
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._bell: asyncio.Task[None] | None = None
        self._claiming = asyncio.Lock()  # one claim at a time: Redis remembers the last one, to answer it again
        self._request = 0

    # -- the life of the worker

    async def main(self) -> None:
        """Run until drained (a signal) or, in burst mode, until nothing is left."""
        self.queue = await Queue.connect(self.settings)
        self.results = Results(self.queue.redis, self.settings)
        self._pool = self.queue.redis  # type: ignore[assignment]
        self.ctx.update(redis=self.queue.redis, settings=self.settings, emit=self.emit, emitted=self._emitted)
        self.ctx["tell"] = self.tell
        self.ctx["blobs"] = self.queue.blobs
        log.info("starting %s for %s: %s", self.id, self.queue_name, ", ".join(self.functions))
        if self.on_startup:
            async with announced(self.settings, self.queue_name, self.id):
                await self.on_startup(self.ctx)
        self.outbox = Outbox(self.queue, self.queue_name, self._lost, self._commit)
        self._table = SlotTable.create(self.max_jobs)
        settle_heap()
        self.beat = BeatProcess(self.settings, self.queue_name, self.id, self._table, self._about(), self._lost)
        await _first_of(self.beat.start(), self._draining.wait())
        await self._work()

    async def _work(self) -> None:
        helpers = [self.outbox.run(), self._control_loop(), self._deadline_loop()]
        if self.ctx.keys() & {"figures", "admits"}:  # an engine that has nothing to tell lets its worker idle
            helpers.append(self._report_loop())
        if self.cron_jobs:
            helpers.append(submit_ticks(self.queue, self.queue_name, self.cron_jobs, self.timezone))
        tasks = [self.loop.create_task(helper) for helper in helpers]
        claims = self.loop.create_task(self._claim_loop())
        try:
            await _first_of(claims, self._told_to_stop(), *tasks)
            claims.cancel()
            await self._drain()
        finally:
            for task in (claims, *tasks):
                task.cancel()
            await asyncio.gather(claims, *tasks, return_exceptions=True)

    async def _told_to_stop(self) -> None:
        # The claim under way gets the time of one call: it ends the claims itself, unless Redis is away.
        await self._draining.wait()
        await asyncio.sleep(self.settings.redis_timeout_s)

    async def _drain(self) -> None:
        """Let running jobs finish within the grace, give the rest back, and see everything written."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._job_completion_wait):
                await _first_of(self._until(lambda: not self.running), self._hurry.wait())
        for run in list(self.running.values()):
            run.stop("shutdown")
        with suppress(TimeoutError):  # Redis may be away: the leases will end by themselves
            async with asyncio.timeout(self.settings.redis_timeout_s):
                await self._until(lambda: not self.running)

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._slot_free.clear()
            await self._slot_free.wait()

    def handle_sig(self, signum: signal.Signals) -> None:
        """Take no more jobs and drain; a second signal ends the grace at once."""
        log.info("%s: draining, %d jobs running", signal.Signals(signum).name, len(self.running))
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()
        self.allow_pick_jobs = False
        self._slot_free.set()
        if self._bell is not None:
            self._bell.cancel()
        elif self.main_task is not None and not hasattr(self, "beat"):
            self.main_task.cancel()  # still loading: nothing to give back
        if self.on_stop:
            self.on_stop(signal.Signals(signum))

    handle_sig_wait_for_completion = handle_sig

    async def close(self) -> None:
        """Leave the list of workers, stop the beat, shut the engine down. Works with Redis away."""
        if self._pool is None:
            return
        if hasattr(self, "beat"):
            await self.beat.stop()
            self._table.close()
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self.settings.redis_timeout_s):
                    await self.queue.leave(self.queue_name, self.id)
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self.queue.close()
        self._pool = None

    async def run_check(self, retry_jobs: bool | None = None, max_burst_jobs: int | None = None) -> int:
        """Run, and raise FailedJobs if any job failed; returns how many completed."""
        if max_burst_jobs is not None:
            self.max_burst_jobs = max_burst_jobs
        await self.async_run()
        if self.jobs_failed:
            raise FailedJobs(self.jobs_failed, [])
        return self.jobs_complete

    def _about(self) -> dict[str, object]:
        return {
            "id": self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": self.max_jobs,
            "takes": self._takes(),
            "started_at": self._started_at,
            "device": self.ctx.get("device", "cpu"),
            "gpu_share": self.ctx.get("gpu_share", 0.0),
            "figures": self.ctx["figures"]() if "figures" in self.ctx else {},
        }

    async def _report_loop(self) -> None:
        """Say how the engine fares, and look again whether it takes more jobs than a moment ago."""
        while True:
            self.beat.tell(self._about())
            self._slot_free.set()
            await asyncio.sleep(1)

    # -- claiming

    async def _claim_loop(self) -> None:
        while not self._draining.is_set():
            want = self._want()
            if want <= 0:
                if self.burst and 0 <= self.max_burst_jobs <= self._started() and not self.running:
                    return
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            async with self._claiming:
                self._request += 1
                claimed = await self._claim(want, self._room())
                for job in claimed:
                    self._start(job)
            if len(claimed) < want and not await self._more():
                return

    async def _claim(self, want: int, room: int) -> list[ClaimedJob]:
        return await patiently(self.queue.claim, self.queue_name, self.id, want, self._request, room)  # type: ignore[no-any-return]

    def _takes(self) -> int:
        # An engine that is short of memory takes fewer jobs than there are slots; never more.
        return min(self.max_jobs, self.ctx["admits"]()) if "admits" in self.ctx else self.max_jobs

    def _room(self) -> int:
        """How many jobs more it may hold now; below 0 while more run than it takes."""
        if self._suspects:
            return 0
        room = self._takes() - len(self.running)
        if self.burst and self.max_burst_jobs >= 0:
            room = min(room, self.max_burst_jobs - self._started())
        return room

    def _want(self) -> int:
        return min(self._chunk, self._room())

    def _started(self) -> int:
        return self.jobs_complete + self.jobs_retried + self.jobs_failed + len(self.running)

    async def _more(self) -> bool:
        """The queue is empty: wait for the bell. False when a burst worker has nothing left to do."""
        if self.burst:
            if not self.running and await patiently(self.queue.is_empty, self.queue_name):
                return False
            await asyncio.sleep(0.01)
            return True
        if not self._draining.is_set():
            self._bell = self.loop.create_task(self._rung())
            with suppress(asyncio.CancelledError):
                await self._bell
            self._bell = None
        return True

    async def _rung(self) -> None:
        try:
            await self.queue.wait_for_bell(self.queue_name)
        except (RedisError, OSError):
            await asyncio.sleep(0.02)  # a ring may be lost with its reply: look, and not wait for another one

    def _start(self, job: ClaimedJob) -> None:
        now = time.monotonic()
        # A suspect's time begins when the others here have ended.
        begins = max([now, *(run.deadline for run in self.running.values())]) if job.suspect else now
        row = self._table.hold(job.lease, now, begins + job.timeout_s)
        log.debug("job %s starts, delivery %d", job.id, job.claims)
        ctx = self.ctx | {"job": job, "job_id": job.id, "job_try": job.attempts + 1}
        self.running[job.lease] = run = Run(job, ctx, row, begins)
        if job.suspect:
            self._suspects.append(run)
        run.task = self.loop.create_task(self._run(run))

    # -- running one job: execute, outcome, commit

    async def _run(self, run: Run) -> None:
        began = self._meter.start()
        outcome = await self._outcome(run)
        gpu_ms = self._meter.end(began)
        if outcome is None:
            self._settle(run)  # stopped, and not ours to write about
            return
        self.outbox.add_outcome(msgspec.structs.replace(outcome, gpu_ms=gpu_ms) if gpu_ms else outcome)

    async def _outcome(self, run: Run) -> Outcome | None:
        try:
            result = await self._execute(run)
            return await self._stored(Outcome.done(run.job, run.seq, result))
        except asyncio.CancelledError:
            return self._interrupted(run)
        except Retry as retry:
            delay_s = None if retry.defer_score is None else retry.defer_score / 1000
            return self._failed(run, JobFailed("retry", "the job asked to be run again", True, delay_s))
        except JobFailed as failure:
            return self._failed(run, failure)
        except NotNow as refusal:
            log.info("job %s goes back to the queue: %s", run.job.id, refusal)
            return Outcome.release(run.job, run.seq)
        except Exception as error:
            log.exception("job %s: %s", run.job.id, type(error).__name__)
            return self._failed(run, JobFailed("error", f"{type(error).__name__} in the job function", True))

    async def _alone(self, run: Run) -> None:
        await self._until(lambda: self._suspects[0] is run and len(self.running) == len(self._suspects))
        run.since = time.monotonic()
        run.deadline = min(run.deadline, run.since + run.job.timeout_s)

    async def _execute(self, run: Run) -> JobResult:
        job = run.job
        if job.suspect:
            await self._alone(run)
        if job.raw.startswith(b"@"):
            job = msgspec.structs.replace(job, raw=await self.queue.blobs.load(job.raw))
        elif len(job.raw) > self.settings.max_body_bytes:  # no submit of ours leaves so much in Redis
            raise JobFailed("unreadable", f"the stored job cannot be read: it has {len(job.raw)} bytes")
        try:
            spec = job.spec
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JobFailed("unreadable", f"the stored job cannot be read: {error}") from error
        name = spec.function or spec.kind
        function = self.functions.get(name)
        if function is None:
            raise JobFailed("unknown_function", f"this worker has no function {name!r}")
        run.limit(function.timeout_s, function.max_tries)
        self.outbox.expect(job, spec.awaited)
        given = (job,) if self._takes_job[name] else ()
        named = {} if self._takes_job[name] else spec.input
        if self.on_job_start:
            await self.on_job_start(run.ctx)
        try:
            return _result(await function.coroutine(run.ctx, *given, **named))
        finally:
            if self.on_job_end:
                await self.on_job_end(run.ctx)

    async def _stored(self, outcome: Outcome) -> Outcome:
        if len(outcome.body) <= self.settings.inline_bytes:
            return outcome
        reference = await self.queue.blobs.store(outcome.body, await self._keep_s(outcome.job))
        return Outcome(outcome.job, outcome.kind, outcome.seq, reference, outcome.usage)

    async def _keep_s(self, job: ClaimedJob) -> float:
        try:
            asked_s = msgspec.structs.replace(job, raw=await self.queue.blobs.load(job.raw)).spec.keep_s
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            asked_s = None  # it ended for that very reason
        return max(self.settings.retention_s, asked_s or 0)

    def _interrupted(self, run: Run) -> Outcome | None:
        if run.reason in ("cancelled", "lost"):
            return None
        if run.reason == "shutdown":
            return Outcome.release(run.job, run.seq)
        if run.reason == "timeout":
            return self._failed(run, JobFailed("timeout", f"it ran longer than {run.deadline - run.since:g} s"))
        return self._failed(run, JobFailed("error", "the job function cancelled itself", True))

    def _failed(self, run: Run, failure: JobFailed) -> Outcome:
        if run.job.attempts + 1 >= run.tries:
            failure = JobFailed(failure.code, failure.message)
        return Outcome.failed(run.job, run.seq, failure, self.settings)

    def _settle(self, run: Run, outcome: Outcome | None = None) -> None:
        """The job's end is stored (or is not ours): its slot is free."""
        if self.running.pop(run.job.lease, None) is None:
            return
        self._table.clear(run.row)
        self.outbox.forget(run.job)
        if run in self._suspects:
            self._suspects.remove(run)
        if outcome is not None:
            self._count(outcome)
        self._slot_free.set()
        if self.after_job_end:
            self.loop.create_task(self.after_job_end(run.ctx))

    def _count(self, outcome: Outcome) -> None:
        if outcome.kind in ("completed", "incomplete"):
            self.jobs_complete += 1
        elif outcome.kind == "failed":
            self.jobs_failed += 1
        else:
            self.jobs_retried += 1

    # -- writing

    async def emit(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        """Append an event to a running job's stream; written in order, together with those of other jobs."""
        run = self.running.get(job.lease)
        if run is None:
            return
        encode(data)  # what cannot be written fails its job here, not the writer of all jobs
        if event == "token" and self.outbox.extend(job, data):
            return
        run.seq += 1
        await self.outbox.add_event(Event(job, run.seq, event, data))

    def tell(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> bool:
        """`emit` for events that come one by one and grow while they wait; returns whether somebody may read them now.

        It does not wait, so that an engine can call it within its step.
        """
        run = self.running.get(job.lease)
        if run is None:
            return False
        encode(data)
        if not self.outbox.extend(job, data):
            run.seq += 1
            self.outbox.add(Event(job, run.seq, event, data))
        return self.outbox.is_read(job)

    async def _emitted(self, job: ClaimedJob) -> list[dict[str, Any]]:
        return await patiently(self.results.emitted, job.id)  # type: ignore[no-any-return]

    async def _commit(self, outcomes: list[Outcome]) -> None:
        """Store ends. With all slots taken, those that this frees are filled by the same script: one way less to wait.

        The new leases are taken once the old ones are gone, so that there are never more of them than slots.
        """
        if self._want() != 0 or not self._fills_at_once():
            self._settled(outcomes, await patiently(self.queue.commit, self.queue_name, outcomes))
            return
        async with self._claiming:
            self._request += 1
            count = min(len(outcomes), self._chunk)
            turn = (self.queue_name, self.id, outcomes, count, self._request)
            answers, claimed = await patiently(self.queue.commit_and_claim, *turn)
            self._settled(outcomes, answers)
            for job in claimed:
                self._start(job)

    def _fills_at_once(self) -> bool:
        return not (self._suspects or self.burst or self._draining.is_set() or self._claiming.locked())

    def _settled(self, outcomes: list[Outcome], answers: list[Answer]) -> None:
        for outcome, answer in zip(outcomes, answers, strict=True):
            self._written(outcome, answer)

    def _written(self, outcome: Outcome, answer: Answer) -> None:
        log.debug("job %s: %s, %s", outcome.job.id, outcome.kind, answer)
        if answer == "lost":
            self.stale += 1
            log.warning("job %s: its lease was lost, this run's end was not stored", outcome.job.id)
        run = self.running.get(outcome.job.lease)
        if run is not None:
            self._settle(run, outcome if answer != "lost" else None)

    # -- stopping jobs

    async def _control_loop(self) -> None:
        while True:
            lease = await patiently(self.queue.next_stop, self.queue_name, self.id)
            if lease in self.running:
                self.running[lease].stop("cancelled")

    def _lost(self, leases: list[str]) -> None:
        for lease in leases:
            if lease in self.running:
                self.running[lease].stop("lost")

    async def _deadline_loop(self) -> None:
        while True:
            now = time.monotonic()
            for run in list(self.running.values()):
                if run.deadline < now:
                    run.stop("timeout")
            await asyncio.sleep(min(1.0, self.settings.lease_s / 4))


def create_worker(settings_cls: Any, **kwargs: Any) -> Worker:
    """A worker from a settings class; keywords win over it."""
    return Worker(**{**get_kwargs(settings_cls), **kwargs})


def run_worker(settings_cls: Any, **kwargs: Any) -> Worker:
    """Create a worker and run it to its end."""
    worker = create_worker(settings_cls, **kwargs)
    worker.run()
    return worker


def _takes_job(function: Callable[..., Any]) -> bool:
    names = list(inspect.signature(function).parameters)
    return len(names) > 1 and names[1] == "job"


def _result(returned: Any) -> JobResult:
    if isinstance(returned, JobResult):
        return returned
    return JobResult(returned if isinstance(returned, dict) else {"value": returned})


async def _first_of(*waits: Awaitable[Any]) -> None:
    """Wait for the first to end and raise its error, if it ended with one."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:  # made here: nobody else waits for it
                task.cancel()
