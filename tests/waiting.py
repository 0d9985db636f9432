"""How tests wait: for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

DEADLINE_VARIABLE = "FAULTS_DEADLINE_S"
#: For anything that should take seconds on an idle machine. A mutant that loses jobs never gets there: it waits less.
DEADLINE_S = float(os.environ.get(DEADLINE_VARIABLE, "60"))


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, deadline_s: float = DEADLINE_S, step_s: float = 0.005
) -> float:
    """Wait for a condition; returns how long it took in seconds."""
    started = time.monotonic()
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return time.monotonic() - started
        assert time.monotonic() - started < deadline_s, f"not in {deadline_s} s: {what}"
        await asyncio.sleep(step_s)
