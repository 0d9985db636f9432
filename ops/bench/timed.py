"""The worker of the waiting benchmark: generation jobs that take as long as their `max_tokens` say, give or take.

It is run as `python -m workers ops.bench.timed.TimedWorker`. `BENCH_SLOTS` says how many jobs it runs at once.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

from common.catalogue import Model
from common.jobs import ClaimedJob

MODEL = Model(alias="timed", kind="generation", engine="fake", weights="", max_model_len=4096, slots=4)
BASE_S, PER_TOKEN_S, SPREAD = 0.04, 0.0015, 0.2


def duration_s(job_id: str, max_tokens: int) -> float:
    """How long a job takes: always the same for the same job, else lognormal about a straight line."""
    return (BASE_S + PER_TOKEN_S * max_tokens) * random.Random(job_id).lognormvariate(0, SPREAD)


async def generation(ctx: dict[str, Any], job: ClaimedJob) -> dict[str, Any]:
    """Take the time that the job is to take."""
    await asyncio.sleep(duration_s(job.id, job.spec.params["max_tokens"]))
    return {"text": "done", "finish_reason": "stop"}


class TimedWorker:
    """What `python -m workers` reads."""

    functions = (generation,)
    queue_name = MODEL.queue
    max_jobs = int(os.environ.get("BENCH_SLOTS", "4"))
