"""A real redis-server for tests: its own port and folder, and a way to kill it and bring it back."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from ops.embedded_redis import SERVER_CONFIG, config_arguments, find_redis_server

START_DEADLINE_S = 10.0


def free_port() -> int:
    """Return a TCP port on loopback that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One redis-server process; `restart` keeps its port and its folder, so its append-only file too."""

    def __init__(
        self,
        folder: Path,
        *,
        aof: bool = False,
        config: dict[str, str] | None = None,
        program: str | None = None,
    ) -> None:
        self.folder = folder
        self.program = program or find_redis_server()
        self.port = free_port()
        self.config = {**SERVER_CONFIG, "appendonly": "yes" if aof else "no", **(config or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of database 0 of this server."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def client(self) -> redis.Redis:
        """Return a new synchronous client; close it, or use it in a `with`."""
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        """Start the server and return once it answers, with its data loaded."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._wait_until_ready()

    def command(self) -> list[str]:
        """What starts it."""
        own = {"port": str(self.port), "dir": str(self.folder), "logfile": "redis.log"}
        return [self.program, *config_arguments({**self.config, **own})]

    def stop(self) -> None:
        """Shut the server down in order (SIGTERM) and wait for its end."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """Kill the server (SIGKILL) and wait for its end."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server if it runs, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete everything in it, scripts too, so that each test loads its own."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(timeout=START_DEADLINE_S)
        self.process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if not self.running:
                raise RuntimeError(f"redis-server ended at its start:\n{self._log_tail()}")
            if self._answers():
                return
            time.sleep(0.01)
        raise RuntimeError(f"redis-server did not answer in {START_DEADLINE_S} s:\n{self._log_tail()}")

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:  # also raised while the data loads
            return False

    def _log_tail(self) -> str:
        log = self.folder / "redis.log"
        return log.read_text()[-2000:] if log.exists() else "(no log)"
