"""On a CPU, a model that needs no second worker computes in the engine core's own process, as on a GPU.

vLLM's CPU platform gives it a worker process, and the two wait for each other in busy loops: half of what a small
model's tokens cost, and on a machine of few cores it is taken from whoever makes the prompts and reads the tokens.
vLLM does that because OpenMP reads its threads from the environment when a process starts. Here they are there then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.catalogue import Model

BACKEND = "distributed_executor_backend"
#: What makes a model need more than one process.
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
#: By this name and not by "uni", for which vLLM's CPU platform takes "mp" instead.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def arguments(model: Model, cpu: bool) -> dict[str, Any]:
    """The engine argument that asks for it; an option of the catalogue wins."""
    spread = model.gpu_count > 1 or any(model.engine_options.get(name, 1) != 1 for name in SIZES)
    return {BACKEND: ONE_PROCESS} if cpu and not spread else {}


@contextmanager
def threads(config: Any) -> Iterator[None]:
    """While this lasts, a process that starts computes with the threads and on the cores that vLLM gives its worker."""
    if config.parallel_config.distributed_executor_backend != ONE_PROCESS:
        yield
        return
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    manager = OMPProcessManager(config)
    if manager.skip_setup or len(manager.cpu_lists[0]) > 1:
        with manager.configure_omp_envs(rank=0, local_rank=0), _numba_too():
            yield
        return
    # A lone thread is not bound to its core: it could not move away from whatever else runs there.
    with _environment("OMP_NUM_THREADS", "1"), _numba_too():
        yield


@contextmanager
def _numba_too() -> Iterator[None]:
    """Numba, which guesses n-grams, starts as many threads as there are cores and then has OpenMP use as many.

    The first guess would give the model the core that was left to others, and threads that wait for each other in busy
    loops where one computed: 140 tokens/s, and 690 without, beside three other busy processes on two cores.
    """
    count = os.environ.get("OMP_NUM_THREADS")
    if count is None:
        yield
        return
    with _environment("NUMBA_NUM_THREADS", count):
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
