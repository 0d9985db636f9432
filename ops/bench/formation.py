"""The whole of Jarvis for a measurement: a Redis, one web process, one scheduler and one worker."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.catalogue import Model
from ops.bench.servers import Aof, BenchFailed, Program, RedisServer, free_port, until
from ops.ready import read_json

READY_LIMIT_S = 300.0


@dataclass
class Formation:
    """A running formation: where it answers, and its processes."""

    port: int
    redis: RedisServer
    programs: list[Program]
    folder: Path

    def check(self) -> None:
        """Raise BenchFailed when one of its processes has died."""
        for program in self.programs:
            program.check()


@contextlib.contextmanager
def formation(model: Model, aof: Aof = "everysec", more: Sequence[str] = ()) -> Iterator[Formation]:
    """Everything started and ready for a job, and `more` modules; all of it is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name,
        RedisServer(aof) as server,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        port = free_port()
        environment = {
            "JARVIS_REDIS_URL": server.url,
            "JARVIS_CATALOGUE": str(write_catalogue(folder, model)),
            "JARVIS_DATA_DIR": str(folder / "data"),
            "JARVIS_PORT": str(port),
            "JARVIS_LOG_LEVEL": "warning",
        }
        programs = []
        for what in (["producer"], ["scheduler"], ["workers", model.kind], *([module] for module in more)):
            program = Program(what[0], [sys.executable, "-m", *what], environment, folder)
            stack.callback(program.stop)
            programs.append(program)
        running = Formation(port, server, programs, folder)
        until(lambda: _ready(running, model.queue), READY_LIMIT_S, f"not ready after {READY_LIMIT_S:.0f} s")
        try:
            yield running
        except BenchFailed as error:
            logs = "".join(f"\n{program.name}:\n{program.log_end()}" for program in programs)
            raise BenchFailed(f"{error}{logs}") from error


def write_catalogue(folder: Path, model: Model) -> Path:
    """A catalogue with this model alone; what preset and keys ask of vLLM stands among its options."""
    options = model.engine_options if model.engine == "vllm" else model.options
    lines = [
        f"[models.{model.alias}]",
        *(f"{key} = {_toml(value)}" for key, value in (("kind", model.kind), ("engine", model.engine))),
        *([f"weights = {_toml(model.weights_path())}"] if model.engine != "fake" else []),
        f"max_model_len = {model.max_model_len}",
        f"slots = {model.slots}",
        f"[models.{model.alias}.options]",
        *(f"{key} = {_toml(value)}" for key, value in options.items()),
        f"[models.{model.alias}.defaults]",
        *(f"{key} = {_toml(value)}" for key, value in model.defaults.items()),
    ]
    file = folder / "models.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _toml(value: Any) -> str:
    if not isinstance(value, (str, int, float, bool)):
        raise BenchFailed(f"an option that is no plain value cannot be benchmarked: {value!r}")
    return json.dumps(value)  # for plain values the two agree


def _ready(running: Formation, queue: str) -> bool:
    running.check()
    ready = read_json(f"http://127.0.0.1:{running.port}/readyz")
    return bool(ready) and ready["workers"].get(queue, 0) > 0
