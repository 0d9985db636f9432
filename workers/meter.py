"""How a worker's busy time is divided among the jobs that run together.

Of a moment in which n jobs run, each has an n-th: so the sum over all jobs is the time in which any ran, however many
shared the GPU. One running sum tells, S(t) = the integral of dt / n(t): a job's part is what S grew by while it ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Meter:
    """The sum over the jobs of one worker; a start and an end cost the same however many run."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._running = 0
        self._shared_ms = 0.0
        self._at = clock()
        self._rest_ms = 0.0

    def start(self) -> float:
        """A job begins; returns what `end` wants of it."""
        self._advance()
        self._running += 1
        return self._shared_ms

    def end(self, began: float) -> int:
        """The job has ended: its part of the busy time in whole ms. What rounding left is the next one's."""
        self._advance()
        self._running -= 1
        part_ms = self._shared_ms - began + self._rest_ms
        whole_ms = int(part_ms)
        self._rest_ms = part_ms - whole_ms
        return whole_ms

    def _advance(self) -> None:
        now = self._clock()
        if self._running:
            self._shared_ms += (now - self._at) * 1000 / self._running
        self._at = now
