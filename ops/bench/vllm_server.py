"""vLLM's own OpenAI server, for measuring beside it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.bench.servers import Program, free_port, until
from ops.ready import read_json

READY_LIMIT_S = 300.0
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
# As in our engine: without it vLLM dies at a short first prompt on CPUs with AMX.
AMX_ALLOWED = {"worker_extension_cls": "workers.engines.vllm_amx.AmxAllowed"}
# As in our engine, see `workers/engines/vllm_one_process.py`: on a CPU vLLM's own server has a process more.
ONE_PROCESS = {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"}
ONE_PROCESS_ENVIRONMENT = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1))}


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A running one."""

    port: int
    pid: int


@contextlib.contextmanager
def vllm_server(
    arguments: Mapping[str, Any], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """A server with these arguments that answers; it is gone afterwards."""
    port = free_port()
    given = {**arguments, "host": "127.0.0.1", "port": port}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags(given)]
    program = Program("server", command, {**ENVIRONMENT, **(environment or {})}, folder)
    try:

        def ready() -> bool:
            program.check()
            return read_json(f"http://127.0.0.1:{port}/v1/models") is not None

        until(ready, READY_LIMIT_S, "vLLM's server did not start")
        yield VllmServer(port, program.process.pid)
    finally:
        program.stop()


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as the command line flags that they are named like."""
    made = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            made += [f"--{flag}", str(value)]
    return made
