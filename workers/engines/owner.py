"""Ties an engine's processes to the worker that started them.

vLLM's engine core and its own workers are spawned processes. Left alone they outlive a SIGKILLed parent, and
share its process group, so that Ctrl-C or a supervisor's group SIGTERM kills the engine under the jobs that the
worker is still draining. An `Owner` travels to them inside vLLM's config: where it is unpickled, the process
leaves the group and ends itself the moment its owner is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

POLL_S = 0.5


class Owner:
    """The process that an engine belongs to; unpickling it elsewhere ties that process to it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        self.pid = state["pid"]
        if os.getpid() != self.pid:  # a copy made inside the owner ties nothing
            follow(self.pid)

    def compute_hash(self) -> str:
        """Part of vLLM's compilation cache key: who owns an engine does not change what is compiled."""
        return ""


def follow(pid: int) -> None:
    """Leave the process group, and end this process when `pid` ends (or has ended)."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    threading.Thread(target=_end_with, args=(pid,), name="owner-watch", daemon=True).start()


def _end_with(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended before we looked
        _wait_for_end(pid)
    # SIGKILL: the engine's own handlers would wait for requests whose readers are gone.
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_end(pid: int) -> None:
    try:
        watched = os.pidfd_open(pid)
    except (AttributeError, PermissionError, OSError) as error:
        if isinstance(error, ProcessLookupError):
            raise
        _poll_for_end(pid)
        return
    select.select([watched], [], [])


def _poll_for_end(pid: int) -> None:
    # Without pidfd (macOS, Linux before 5.3): signal 0 asks whether the process exists.
    while True:
        os.kill(pid, 0)
        time.sleep(POLL_S)
