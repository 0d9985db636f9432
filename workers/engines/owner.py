"""Ties an engine's processes to the worker that started them.

vLLM's engine core and its own workers are spawned processes. Left alone they outlive a SIGKILLed parent, and
share its process group, so that Ctrl-C or a supervisor's group SIGTERM kills the engine under the jobs that the
worker is still draining. An `Owner` travels to them inside vLLM's config: where it is unpickled, the process
leaves the group and ends itself the moment its owner is gone. The errors that vLLM logs there before it gives up
come back to the owner, whom vLLM only tells that a process ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

POLL_S = 0.5


class Owner:
    """The process that an engine belongs to; unpickling it elsewhere ties that process to it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: Made by the engine's processes, and only when one of them has an error to tell.
        self.errors = str(Path(tempfile.gettempdir()) / f"jarvis-engine-{self.pid}-{secrets.token_hex(8)}.errors")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.pid, self.errors = state["pid"], state["errors"]
        if os.getpid() != self.pid:  # a copy made inside the owner ties nothing
            follow(self.pid)
            tell(self.errors)

    def told(self) -> list[str]:
        """The errors that the engine's processes have logged, first come first; they are told once."""
        path = Path(self.errors)
        try:
            text = path.read_text(errors="replace")
            path.unlink()
        except FileNotFoundError:
            return []
        return text.splitlines()

    def compute_hash(self) -> str:
        """Part of vLLM's compilation cache key: who owns an engine does not change what is compiled."""
        return ""


def tell(path: str) -> None:
    """From now on append the exception of every logged error of this process to a file, one a line."""
    # Not a handler: vLLM configures its loggers anew in each of its processes, and takes foreign handlers off them.
    make = logging.getLogRecordFactory()

    def make_and_tell(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR and error is not None:
            _append(path, f"{type(error).__name__}: {error}".replace("\n", " "))
        return record

    logging.setLogRecordFactory(make_and_tell)


def _append(path: str, line: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with contextlib.suppress(OSError), os.fdopen(os.open(path, flags, 0o600), "a") as file:
        file.write(f"{line}\n")


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
