"""One job while a worker holds it: how long it may run, and why it was stopped.

A timeout, a cancel, a lost lease and a shutdown all reach the job function as the same CancelledError.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from common.jobs import ClaimedJob

Reason = Literal["cancelled", "lost", "timeout", "shutdown"]


class Run:
    """One job while this worker holds it."""

    __slots__ = ("ctx", "deadline", "job", "reason", "row", "seq", "since", "task", "tries")

    def __init__(self, job: ClaimedJob, ctx: dict[Any, Any], row: int, since: float) -> None:
        self.job = job
        self.ctx = ctx  # one for the job function and all its hooks, as in arq
        self.row = row
        self.since = since
        self.deadline = since + job.timeout_s
        self.tries = job.max_attempts
        self.seq = job.seq
        self.task: asyncio.Task[None] | None = None
        self.reason: Reason | None = None

    def limit(self, timeout_s: float | None, max_tries: int | None) -> None:
        """What the function says of itself (arq's `func`) counts where it is less than what the job says."""
        if timeout_s:
            self.deadline = min(self.deadline, self.since + timeout_s)
        if max_tries:
            self.tries = min(self.tries, max_tries)

    def stop(self, reason: Reason) -> None:
        """Cancel the job function; the first reason counts."""
        if self.reason is None and self.task is not None and not self.task.done():
            self.reason = reason
            # Not at once: a task that is cancelled before its first step never runs, and its slot were lost.
            asyncio.get_running_loop().call_soon(self.task.cancel)
