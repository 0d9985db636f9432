"""The threads of an engine core that computes in its own process, and what numba makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from workers.engines.vllm_one_process import ONE_PROCESS, threads

CONFIG = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend=ONE_PROCESS))
GUESSES = """
import numba, torch

@numba.njit(parallel=True)
def guess(numbers):
    for i in numba.prange(len(numbers)):
        numbers[i] += 1

before = torch.get_num_threads()
guess(torch.zeros(4).numpy())
print(before, torch.get_num_threads())
"""


class FakeManager:
    """In vLLM's place: binds to two cores what starts, or to one."""

    skip_setup = False
    cpu_lists: tuple[list[int], ...] = ([0, 1],)

    def __init__(self, config: Any) -> None:
        pass

    @contextmanager
    def configure_omp_envs(self, rank: int, local_rank: int) -> Iterator[None]:
        """As vLLM does."""
        os.environ["OMP_NUM_THREADS"] = "2"
        yield
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> type[FakeManager]:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    stand_in = SimpleNamespace(OMPProcessManager=FakeManager)
    monkeypatch.setitem(sys.modules, "vllm.utils.ompmultiprocessing", stand_in)
    return FakeManager


def environment() -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("NUMBA_NUM_THREADS")


def test_numba_gets_as_many_threads_as_the_model(manager: type[FakeManager], monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(CONFIG):
        assert environment() == ("2", "2")
    assert environment() == (None, None)
    monkeypatch.setattr(manager, "cpu_lists", ([1],))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    with threads(CONFIG):
        assert environment() == ("1", "1")
    assert environment() == ("7", "5")


def test_a_guess_leaves_the_model_its_threads(manager: type[FakeManager], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "cpu_lists", ([1],))
    with threads(CONFIG):
        done = subprocess.run([sys.executable, "-c", GUESSES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
