"""Workers of no-op jobs and schedulers beside a Redis of their own, as processes: what most of our own figures need."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.bench.peer import COMPLETED, WORKER, worker_environment
from ops.bench.servers import Aof, Program, RedisServer, until

SCHEDULER = [sys.executable, "-m", "scheduler"]
DONE_LIMIT_S = 120.0


class Crew:
    """The processes around one Redis; `environment` holds for all of them."""

    def __init__(self, server: RedisServer, folder: Path, environment: Mapping[str, str]) -> None:
        self.server = server
        self.folder = folder
        self.journal = folder / "journal.txt"
        self.programs: list[Program] = []
        self._environment = {"PB_JOURNAL": str(self.journal), **environment}

    def worker(self, slots: int, command: Sequence[str] = WORKER, **variables: str) -> Program:
        """One more worker, not waited for; `variables` are of its own environment."""
        return self._start("worker", command, {**worker_environment(self.server.port, slots), **variables})

    def scheduler(self) -> Program:
        """One more scheduler, not waited for."""
        return self._start("scheduler", SCHEDULER, worker_environment(self.server.port, 1))

    def completed(self) -> int:
        """How many jobs have completed, their results stored."""
        counted: Any = self.server.client.execute_command(*COMPLETED)  # type: ignore[no-untyped-call]
        return int(counted or 0)

    def until(self, done: Callable[[], bool], otherwise: str, limit_s: float = DONE_LIMIT_S) -> None:
        """Look every 20 ms until it is so; BenchFailed when it takes too long or a process has died."""

        def look() -> bool:
            for program in self.programs:
                program.check()
            return done()

        until(look, limit_s, otherwise)

    def kill(self, program: Program) -> None:
        """SIGKILL to a process and all of its group; it is not looked after any more."""
        self.programs.remove(program)
        os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()

    def stop(self) -> None:
        """End all in order."""
        for program in self.programs:
            program.stop()

    def _start(self, what: str, command: Sequence[str], environment: Mapping[str, str]) -> Program:
        name = f"{what}-{len(self.programs)}"
        program = Program(name, command, {**environment, **self._environment}, self.folder)
        self.programs.append(program)
        return program


@contextlib.contextmanager
def crew(aof: Aof = "everysec", **environment: str) -> Iterator[Crew]:
    """A Redis and nobody yet; all that was started is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as folder, RedisServer(aof) as server:
        made = Crew(server, Path(folder), environment)
        try:
            yield made
        finally:
            made.stop()
