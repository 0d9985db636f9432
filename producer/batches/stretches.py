"""A stretch of a batch's lines: to the queue, and back as lines of the two files.

A line's jobs have ids that follow from the batch and the line, so that a stretch that is opened again, by whomever,
finds the jobs that it had: one that has finished is not run again, and one that is lost is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any

import msgspec

from common.batches import Batch, BatchState, Live, Part, Stretch
from common.errors import JarvisError, LimitReached, QueueFull
from common.jobs import JobRecord, JobSpec
from common.keys import line_job_id
from common.queue import Queue
from common.results import Results, StoredResult
from common.settings import Settings
from common.states import TERMINAL, State
from common.webhooks import Hook
from producer.batches.endpoints import Here
from producer.batches.lines import WrongLine, line_of, read
from producer.openai.errors import document, of_record

#: Jobs whose states are asked for in one round trip, and whose results are.
ASKED, FETCHED = 500, 16
#: What is small is collected in memory, what is larger in a file of the system's.
SPOOLED_BYTES = 1 << 20
#: A job's record outlives its batch's window by this, for whoever takes the batch over late.
AFTERWARDS_S = 86_400.0
#: A line's end is told to nobody: its owner's endpoints hear of the batch.
QUIET = Hook(subject="line")
DONE = (State.COMPLETED, State.INCOMPLETE)
NOT_DONE = {
    BatchState.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
    BatchState.CANCELLED: ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


@dataclass(frozen=True, slots=True)
class Tools:
    """What stretches are worked on with."""

    here: Here
    queue: Queue
    results: Results
    settings: Settings


@dataclass(slots=True)
class OpenLine:
    """A line whose jobs run, or why it has none."""

    number: int
    custom_id: str
    jobs: list[str] = field(default_factory=list)
    answer: Callable[[Sequence[StoredResult]], Any] | None = None
    refused: dict[str, Any] | None = None


@dataclass(slots=True)
class OpenStretch:
    """A stretch whose lines run."""

    number: int
    lines: list[OpenLine]
    waiting: list[tuple[str, JobSpec]]  # jobs that are not submitted yet
    running: set[str]  # jobs of which no end is known
    failed: set[str] = field(default_factory=set)  # jobs that have ended without a result
    held_until: float = 0.0  # nothing is submitted before: its key's limits are used up (CLOCK_MONOTONIC, s)

    @property
    def jobs(self) -> int:
        """How many jobs it stands for."""
        return sum(len(line.jobs) for line in self.lines)

    @property
    def live(self) -> Live:
        """Its lines that have ended."""
        ended = [line for line in self.lines if self.running.isdisjoint(line.jobs)]
        failed = sum(line.refused is not None or not self.failed.isdisjoint(line.jobs) for line in ended)
        return Live(len(ended) - failed, failed)


@dataclass(slots=True)
class Collected:
    """What a stretch has come to."""

    part: Part
    counts: Live
    usage: dict[str, int]


async def opened(tools: Tools, batch: Batch, number: int, stretch: Stretch, left_s: float) -> OpenStretch:
    """A stretch with its jobs, none of them submitted yet. Raises FileNotFoundError, StoreUnavailable."""
    lines: list[OpenLine] = []
    waiting: list[tuple[str, JobSpec]] = []
    longest, here = tools.settings.max_body_bytes, tools.here.for_batch(batch.asked)
    async for one in read(tools.here.files.blobs, batch.asked.blob, longest, stretch):
        try:
            line = await line_of(one, batch.asked.endpoint, here)
        except WrongLine as wrong:  # the catalogue is another one than when it was checked
            first = wrong.errors[0]
            body = document(400, first.message, first.param, first.code)
            lines.append(OpenLine(one.number, wrong.custom_id, refused={"status_code": 400, "body": body}))
            continue
        measured = tools.here.submitter.metering.measured
        specs = [await measured(_of_batch(spec, batch, left_s)) for spec in line.prepared.specs]
        ids = [_job_id(tools.queue, batch, line.number, place, spec) for place, spec in enumerate(specs)]
        lines.append(OpenLine(line.number, line.custom_id, ids, line.prepared.answer))
        waiting += zip(ids, specs, strict=True)
        await asyncio.sleep(0)
    return OpenStretch(number, lines, waiting, {job for job, _ in waiting})


def _of_batch(spec: JobSpec, batch: Batch, left_s: float) -> JobSpec:
    # With a key, all that its owner asks for shares his part. Without one nobody says who is who: then each batch is a
    # user, so that batches share the lane fairly with each other and with whoever else is in it.
    left_s = max(left_s, 1.0)
    return msgspec.structs.replace(
        spec,
        user=batch.asked.user if batch.asked.api_key else batch.id,
        priority="low",
        metadata={},
        ttl_s=left_s,
        keep_s=left_s + AFTERWARDS_S,
        hook=spec.hook or (QUIET if batch.asked.api_key else None),
    )


def _job_id(queue: Queue, batch: Batch, line: int, place: int, spec: JobSpec) -> str:
    return line_job_id(queue.keys.shard_of_queue(spec.queue), batch.id, line, place)


async def submit(tools: Tools, stretch: OpenStretch, most: int) -> int:
    """Submit so many of what waits; returns how many were tried. What the queue has no room for waits on, and so does
    what is over its key's limits, until those let it through; what they never will is refused.

    Raises StoreUnavailable.
    """
    some, later = stretch.waiting[:most], stretch.waiting[most:]
    if not some or time.monotonic() < stretch.held_until:
        return 0
    ids, specs = zip(*some, strict=True)
    answers = await tools.queue.submit_each(specs, (), ids)
    again: list[tuple[str, JobSpec]] = []
    for one, answer in zip(some, answers, strict=True):
        if isinstance(answer, LimitReached) and answer.retry_after_s is None:
            await _refuse(tools, stretch, one[0], answer)
        elif isinstance(answer, LimitReached | QueueFull):
            again.append(one)
            if isinstance(answer, LimitReached) and answer.retry_after_s:
                stretch.held_until = time.monotonic() + answer.retry_after_s
        elif isinstance(answer, JarvisError):
            raise answer
    stretch.waiting = [one for one in again + later if one[0] in stretch.running]
    return len(some)


async def _refuse(tools: Tools, stretch: OpenStretch, job_id: str, error: LimitReached) -> None:
    line = next(line for line in stretch.lines if job_id in line.jobs)
    body = document(429, str(error), None, "insufficient_quota")
    line.refused = {"status_code": 429, "body": body}
    await tools.queue.cancel_each(line.jobs)  # those of it that went through
    stretch.running.difference_update(line.jobs)


async def look(tools: Tools, stretches: Sequence[OpenStretch]) -> set[int]:
    """See which jobs have ended; returns numbers of stretches that have lost one, and must be opened again."""
    asked = [(one, job) for one in stretches for job in one.running - {waiting for waiting, _ in one.waiting}]
    lost: set[int] = set()
    for start in range(0, len(asked), ASKED):
        some = asked[start : start + ASKED]
        states = await tools.results.states([job for _, job in some])
        for (one, job), state in zip(some, states, strict=True):
            if state is None:
                lost.add(one.number)
            elif state in TERMINAL:
                one.running.discard(job)
                if state not in DONE:
                    one.failed.add(job)
    return lost


async def collect(tools: Tools, batch: Batch, stretch: OpenStretch, reason: BatchState | None) -> Collected:
    """Write the answers of a stretch, in order; `reason` is why lines may be without one.

    Raises StoreUnavailable.
    """
    usage = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0}
    collected = Collected(Part(), Live(), usage)
    with SpooledTemporaryFile(SPOOLED_BYTES) as output, SpooledTemporaryFile(SPOOLED_BYTES) as errors:
        async for line, found in _found(tools, stretch):
            good, text = await _line_out(tools, batch, line, found, reason, collected.usage)
            (output if good else errors).write(msgspec.json.encode(text) + b"\n")
            collected.counts += Live(int(good), int(not good))
        collected.part = Part(await _stored(tools, batch, output), await _stored(tools, batch, errors))
    return collected


Found = tuple[JobRecord, bytes] | None


async def _found(tools: Tools, stretch: OpenStretch) -> AsyncIterator[tuple[OpenLine, list[Found]]]:
    lines, some, jobs = stretch.lines, list[OpenLine](), list[str]()
    for line in [*lines, None]:
        if line:
            some.append(line)
            jobs += line.jobs
        if line is None or len(jobs) >= FETCHED:
            found = iter(await tools.results.looks(jobs) if jobs else [])
            for one in some:
                yield one, [next(found) for _ in one.jobs]
            some, jobs = [], []


async def _line_out(
    tools: Tools, batch: Batch, line: OpenLine, found: list[Found], reason: BatchState | None, usage: dict[str, int]
) -> tuple[bool, dict[str, Any]]:
    name = line_job_id("00", batch.id, line.number, 0).removeprefix("job_00")
    out: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": line.custom_id, "response": None, "error": None}
    good, response = await _response(tools, line, found, reason, usage)
    if response is not None:
        request_id = line.jobs[0] if line.jobs else f"req_{name}"
        return good, out | {"response": {"status_code": 200, "request_id": request_id, **response}}
    assert reason
    code, message = NOT_DONE[reason]
    return False, out | {"error": {"code": code, "message": message}}


async def _response(
    tools: Tools, line: OpenLine, found: list[Found], reason: BatchState | None, usage: dict[str, int]
) -> tuple[bool, dict[str, Any] | None]:
    if line.refused is not None:
        return False, line.refused
    results: list[StoredResult] = []
    for one in found:
        if one is None or (reason and one[0].status in (State.CANCELLED, State.EXPIRED)):
            return (False, None) if reason else (False, _server_error("the job's record is gone"))
        record, raw = one
        if record.status not in DONE:
            status, body = of_record(record)
            return False, {"status_code": status, "body": body}
        try:
            results.append(StoredResult(record, await tools.results.rendered(raw)))
        except FileNotFoundError:
            return False, _server_error("the job's result is gone from the blob store")
    assert line.answer
    _count(usage, results)
    return True, {"body": line.answer(results)}


def _server_error(message: str) -> dict[str, Any]:
    return {"status_code": 500, "body": document(500, message, None, "result_lost")}


def _count(usage: dict[str, int], results: list[StoredResult]) -> None:
    for one in results:
        told = one.record.usage or {}
        usage["input_tokens"] += int(told.get("prompt_tokens", 0))
        usage["cached_tokens"] += int(told.get("cached_tokens", 0))
        usage["output_tokens"] += int(told.get("completion_tokens", 0))
        usage["reasoning_tokens"] += int(told.get("reasoning_tokens", 0))


async def _stored(tools: Tools, batch: Batch, file: SpooledTemporaryFile[bytes]) -> str | None:
    if not file.tell():
        return None
    file.seek(0)
    return await tools.here.files.blobs.store_file(file, batch.asked.window_s + AFTERWARDS_S)
