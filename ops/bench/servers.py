"""The processes that a benchmark starts: a Redis of its own in a folder of its own, and programs it can stop.

Whatever is started here runs in a session of its own and is gone when the `with` block ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import redis

from ops.bench.machine import ROOT
from ops.embedded_redis import config_arguments, find_redis_server

Aof = Literal["everysec", "no", "always"]
TICK = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 15.0


class BenchFailed(Exception):
    """A measurement could not be taken; the message says why."""


def until(done: Callable[[], bool], limit_s: float, otherwise: str) -> None:
    """Look every 20 ms until it is so; BenchFailed when it is not so in time."""
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise BenchFailed(otherwise)
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server with nothing in it. `aof` is appendfsync; "no" means that there is no append-only file at all."""

    def __init__(self, aof: Aof = "everysec") -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="jarvis-bench-redis-")
        config = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "dir": self._folder.name}
        config["appendonly"] = "no" if aof == "no" else "yes"
        if aof != "no":
            config["appendfsync"] = aof
        command = [find_redis_server(), *config_arguments(config)]
        self.p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port)
        until(self._answers, START_LIMIT_S, "redis-server did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """End it and delete its data."""
        self.client.close()
        self.p.kill()  # its data is not needed
        self.p.wait()
        self._folder.cleanup()

    def calls(self) -> dict[str, int]:
        """How often each command ran since the start or the last reset, those inside scripts too."""
        stats = self.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}  # type: ignore[union-attr]

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.exceptions.ConnectionError:
            return False


class Program:
    """One process of ours, with everything it prints in a log file."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(command),
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise BenchFailed with the end of its log when it has died."""
        if self.process.poll() is not None:
            raise BenchFailed(f"{self.name} ended with {self.process.returncode}:\n{self.log_end()}")

    def log_end(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, grace_s: float = 15.0) -> None:
        """End it in order; kill what is left of its session."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds of one process, to the nanosecond where the system counts them so (0 when it has ended)."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
    except OSError:
        return tree_cpu_s([pid])


def descendants(pid: int) -> list[int]:
    """The processes that descend from this one and live."""
    rows = _processes()
    return [one for one in rows if one != pid and _descends(one, {pid}, rows)]


def rss_mib(pid: int) -> float:
    """Memory of a process and of all that descend from it; what they share counts for each."""
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (pid, *descendants(pid))]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process with all its threads on some cores, and what it starts later too."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def tree_cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of these processes and of all that descend from them and live."""
    rows = _processes()
    return sum(cpu for pid, (_, cpu) in rows.items() if _descends(pid, set(pids), rows))


def _processes() -> dict[int, tuple[int, float]]:
    entries = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {int(entry.name): row for entry in entries if (row := _stat(entry))}


def _stat(entry: Path) -> tuple[int, float] | None:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), sum(map(int, fields[11:15])) / TICK  # parent; with children that have ended


def _descends(pid: int, roots: set[int], rows: dict[int, tuple[int, float]]) -> bool:
    while pid in rows:
        if pid in roots:
            return True
        pid = rows[pid][0]
    return False
