"""Settings for `python -m workers tests.faults.handlers.<name>`: job functions that misbehave as they are told.

Each writes into the ledger when it starts and when it ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

from arq import cron, func

from common.catalogue import Catalogue
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult, Usage
from common.settings import load_settings
from tests.faults.ledger import note
from workers.embedding import settings_for as embedding_settings_for
from workers.generation import settings_for as generation_settings_for

QUEUE = "work:test"
CRASH = "import os; os.kill(os.getpid(), 11)"
EAT = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**28, 2**28)); b = bytearray(2**30)"


async def started(ctx: dict[str, Any]) -> None:
    """Hook: a run starts."""
    note("start", ctx["job"])


async def ended(ctx: dict[str, Any]) -> None:
    """Hook: a run has come to its end, whatever that was."""
    note("end", ctx["job"])


async def work(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
    """Do what the job's input says: {"do": name, ...}."""
    note("start", job)
    asked = dict(job.spec.input)
    output = await DEEDS[asked.pop("do", "sleep")](ctx, job, **asked)
    note("end", job)
    usage: Usage = {"prompt_tokens": job.claims, "completion_tokens": 2}  # of the run whose result it is
    return JobResult({"claims": job.claims, "pid": os.getpid(), **(output or {})}, usage)


async def sleep(ctx: dict[str, Any], job: ClaimedJob, s: float = 0.01) -> None:
    """Take a while."""
    try:
        await asyncio.sleep(s)
    except asyncio.CancelledError:
        note("stopped", job)
        raise


async def hold(ctx: dict[str, Any], job: ClaimedJob, file: str) -> None:
    """Take as long as a file is there."""
    while await asyncio.to_thread(os.path.exists, file):  # noqa: ASYNC110 - another process removes it
        await asyncio.sleep(0.02)


async def compute(ctx: dict[str, Any], job: ClaimedJob, s: float) -> dict[str, float]:
    """One C call that holds the GIL the whole time, so that no other thread of this process gets a turn.

    It sleeps where an engine's would compute (PyDLL does not let go of the GIL): as long as asked on any machine.
    """
    started = time.monotonic()
    ctypes.PyDLL(None).usleep(int(s * 1_000_000))
    return {"held_s": time.monotonic() - started}


async def tokens(ctx: dict[str, Any], job: ClaimedJob, n: int, s: float = 0.05) -> dict[str, str]:
    """Emit n tokens, from where an earlier delivery stopped."""
    emitted = await ctx["emitted"](job) if job.claims > 1 else []
    texts = [event["text"] for event in emitted]
    for number in range(sum(len(event["ids"]) for event in emitted), n):  # an event may be of several tokens
        await asyncio.sleep(s)
        texts.append(f"t{number} ")
        await ctx["emit"](job, "token", {"text": texts[-1], "ids": [number]})
    return {"text": "".join(texts)}


async def die(ctx: dict[str, Any], job: ClaimedJob) -> None:
    """Kill this worker."""
    os.kill(os.getpid(), signal.SIGKILL)


async def poison_once_removed(ctx: dict[str, Any], job: ClaimedJob, file: str) -> None:
    """Kill this worker as long as a file is there."""
    if await asyncio.to_thread(os.path.exists, file):
        os.kill(os.getpid(), signal.SIGKILL)


async def child(ctx: dict[str, Any], job: ClaimedJob, code: str) -> None:
    """Run a child that crashes."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=subprocess.DEVNULL)
    if await process.wait():
        raise JobFailed("child_died", f"the child ended with {process.returncode}", retryable=True, delay_s=0)


async def eat(ctx: dict[str, Any], job: ClaimedJob) -> None:
    """Ask for more memory than this process may have, as a decoder of a hostile file would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**32, hard))
    try:
        bytearray(2**33)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


async def tick(ctx: dict[str, Any]) -> None:
    """A recurring job of two workers."""
    note("start", ctx["job"])


DEEDS: dict[str, Any] = {
    "sleep": sleep,
    "hold": hold,
    "compute": compute,
    "tokens": tokens,
    "die": die,
    "poison": poison_once_removed,
    "child": child,
    "eat": eat,
}


class Work:
    """A worker for `work:test`; JARVIS_SLOTS says how many jobs at once."""

    functions = (func(work, name="work"),)
    queue_name = QUEUE
    max_jobs = load_settings().slots or 10


class Ticking(Work):
    """The same with a cron job of every second."""

    cron_jobs = (cron(tick, second=set(range(60)), microsecond=0),)


def _with_ledger(kind: str, place: int = 0) -> dict[str, Any]:
    settings = load_settings()
    settings_for = {"generation": generation_settings_for, "embedding": embedding_settings_for}[kind]
    models = Catalogue.load(settings.catalogue).of_kind(kind)
    return settings_for(models[place], settings) | {"on_job_start": started, "on_job_end": ended}


def __getattr__(name: str) -> dict[str, Any]:
    # Only a worker of that kind needs a catalogue: read on demand.
    if name in ("generation", "embedding"):
        return _with_ledger(name)
    if name == "quick":
        return _with_ledger("embedding", 1)
    raise AttributeError(name)
