"""Recurring jobs of a settings class (arq's `cron_jobs`): one job per tick, however many workers have them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime, tzinfo

from arq.cron import CronJob

from common.errors import QueueFull
from common.jobs import JobSpec
from common.queue import Key, Queue
from workers.outbox import patiently

log = logging.getLogger("jarvis.worker")


async def submit_ticks(queue: Queue, queue_name: str, jobs: Sequence[CronJob], timezone: tzinfo | None) -> None:
    """Submit each job to `queue_name` whenever its time comes; ends by cancellation."""
    for job in jobs:
        if job.run_at_startup:
            await _submit(queue, queue_name, job, datetime.now(tz=timezone))
        job.calculate_next(datetime.now(tz=timezone))
    while True:
        job = min(jobs, key=_next_run)
        tick = _next_run(job)
        await asyncio.sleep(max(0.0, tick.timestamp() - time.time()))
        await _submit(queue, queue_name, job, tick)
        job.calculate_next(tick)


async def _submit(queue: Queue, queue_name: str, job: CronJob, tick: datetime) -> None:
    kind, _, model = queue_name.partition(":")
    spec = JobSpec(
        kind=kind,
        model=model,
        input={},
        user="cron",
        function=job.name,
        timeout_s=job.timeout_s,
        max_attempts=job.max_tries,
    )
    # The key is the tick: of all the workers that submit it, one does.
    key = Key(f"cron {job.name} {int(tick.timestamp() * 1000)}", "")
    try:
        await patiently(queue.submit, spec, key)
    except QueueFull as full:
        log.warning("cron job %s: the tick at %s is left out: %s", job.name, tick, full)


def _next_run(job: CronJob) -> datetime:
    assert job.next_run is not None, "calculate_next was called"
    return job.next_run
