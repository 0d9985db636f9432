"""`python -m tests.faults.late_clock MODULE`: runs a module as a process whose clock is an hour ahead."""

from __future__ import annotations

import runpy
import sys
import time

AHEAD_S = 3600


def main() -> None:
    """Put the clock on, then be that module."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + AHEAD_S
    time.time_ns = lambda: now_ns() + AHEAD_S * 10**9
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
