"""One process of the formation: started, listened to, and started again whenever it ends.

It leads its own session. When the leader ends, what it left in its group (a killed vLLM worker leaves engine
processes that hold the device) is killed before the restart.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

#: Takes a process' name and a line that it printed, or that we have to say about it.
Say = Callable[[str, bytes | str], None]
#: Output without a line end is passed on in pieces of about this size.
LINE_LIMIT_BYTES = 1024 * 1024
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """One process of the formation: `web.1` with its shell command and its own environment."""

    name: str
    command: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Backoff:
    """How long to wait before the next start: doubles up to `most_s`, resets after a healthy run."""

    first_s: float = 0.2
    most_s: float = 10.0
    healthy_s: float = 30.0
    _next_s: float = 0.0

    def after(self, ran_s: float) -> float:
        """Return the pause after a run that lasted `ran_s`."""
        if ran_s >= self.healthy_s or self._next_s == 0.0:
            self._next_s = self.first_s
        pause_s = self._next_s
        self._next_s = min(self._next_s * 2, self.most_s)
        return pause_s


class Supervised:
    """One program, started again whenever it ends, until `stop` is called."""

    def __init__(self, program: Program, say: Say, backoff: Backoff) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = asyncio.Event()
        self._say = say
        self._backoff = backoff
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Run until stopped, restarting what ends."""
        while not self.stopping.is_set():
            started = time.monotonic()
            status = await self._run_once()
            ran_s = time.monotonic() - started
            if self.stopping.is_set():
                self._say(self.program.name, f"ended ({explain(status)})")
                return
            pause_s = self._backoff.after(ran_s)
            ended = f"ended by itself ({explain(status)}) after {ran_s:.1f} s"
            self._say(self.program.name, f"{ended}; starting it again in {pause_s:.1f} s")
            await self._pause(pause_s)

    def stop(self) -> None:
        """Ask the leader to end (SIGTERM) and restart it no more."""
        self.stopping.set()
        self._signal_leader(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group now (SIGKILL)."""
        self.stopping.set()
        if self.process is not None:
            kill_group(self.process.pid)

    def notice_end(self) -> None:
        """Look whether the leader ended; called on every SIGCHLD."""
        if self.process is not None and has_ended(self.process):
            self._ended.set()

    async def _run_once(self) -> int:
        self._ended.clear()
        self.process = process = spawn(self.program)
        lines = _LineReader(process.stdout, lambda line: self._say(self.program.name, line))
        # Its SIGCHLD may have come before the process was known here.
        self.notice_end()
        await self._ended.wait()
        # The ended leader is not reaped yet, so its group's number cannot belong to anyone else.
        kill_group(process.pid)
        status = process.wait()
        self.process = None
        lines.close()
        return status

    async def _pause(self, pause_s: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), pause_s)
        except TimeoutError:
            return

    def _signal_leader(self, what: signal.Signals) -> None:
        if self.process is not None and not has_ended(self.process):
            self.process.send_signal(what)


class _LineReader:
    """Passes on the lines that come through a pipe, while the loop runs; `close` passes on the rest."""

    def __init__(self, pipe: IO[bytes] | None, line: Callable[[bytes], None]) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._line = line
        self._rest = b""
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._read)

    def close(self) -> None:
        if not self._pipe.closed:
            while self._read():
                pass
        self._finish()

    def _read(self) -> bool:
        try:
            data = os.read(self._pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        if not data:
            self._finish()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > LINE_LIMIT_BYTES:
            self._line(self._rest)
            self._rest = b""
        return True

    def _finish(self) -> None:
        if self._pipe.closed:
            return
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._pipe.close()
        if self._rest:
            self._line(self._rest)


def spawn(program: Program) -> subprocess.Popen[bytes]:
    """Start a program as the leader of its own session, its output on one pipe."""
    return subprocess.Popen(
        shell_command(program.command),
        env={**os.environ, **program.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent if _prctl else None,
    )


def _load_prctl() -> Any:
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


# Loaded before any fork: a child between fork and exec must not look for libraries.
_prctl = _load_prctl()


def _end_with_parent() -> None:
    # A killed supervisor would leave a formation behind that holds the port and that nobody restarts.
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a child ended, without reaping it where the system can tell."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_group(leader: int) -> None:
    """Kill what lives in the process group of `leader`."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # macOS answers EPERM for a group in which only the ended leader is left.
        return


def explain(status: int) -> str:
    """Return an exit status in words: `exit code 1`, `SIGKILL`."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def shell_command(command: str) -> list[str]:
    """Return how to run a Procfile line so that the shell does not stand between us and the process."""
    simple = not re.search(r"[;&|<>(){}\n]", command) and not re.match(r"\s*(exec\s|\w+=)", command)
    return ["/bin/sh", "-c", f"exec {command}" if simple else command]
