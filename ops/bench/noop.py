"""The worker of the queue benchmark: an arq-style settings class whose jobs do nothing.

It is run as `python -m workers ops.bench.noop.NoopWorker`, so that what is measured is the worker as it is, with
every promise on. `BENCH_SLOTS` says how many jobs it runs at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import cache
from typing import Any

QUEUE = ("noop", "bench")
TEXT = "x" * 170


def payload(i: int) -> dict[str, Any]:
    """A job's input, about 200 bytes of JSON: the same as every peer's."""
    return {"i": i, "kind": "noop", "text": TEXT}


async def noop(ctx: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Do nothing; say which job it was and when it ran."""
    return {"ok": True, "i": given["i"], "t": time.time()}


async def sleep(ctx: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Note the start in the harness' journal (one atomic line), then sleep 50 ms."""
    os.write(_journal(), f"{given['i']} {os.getpid()} {time.time():.6f}\n".encode())
    await asyncio.sleep(0.05)
    return {"ok": True, "i": given["i"], "t": time.time()}


@cache
def _journal() -> int:
    return os.open(os.environ["PB_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


async def nap(ctx: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Sleep for as long as the job says, as a model's work of that size would take."""
    await asyncio.sleep(given["ms"] / 1000)
    return {"ok": True}


class NoopWorker:
    """What `python -m workers` reads."""

    functions = (noop, sleep, nap)
    queue_name = os.environ.get("BENCH_QUEUE", ":".join(QUEUE))
    max_jobs = int(os.environ.get("BENCH_SLOTS", "100"))
