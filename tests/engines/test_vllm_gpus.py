"""What takes an engine of its own: a model over two processes, and an engine that runs out of memory at its start."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsInvalid
from common.model import Model
from common.settings import Settings
from tests.engines.test_vllm_engine import all_children
from workers.engines.protocol import GenerationRequest
from workers.engines.vllm_engine import VllmEngine
from workers.placement import leave, settle

pytestmark = pytest.mark.slow


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_model_over_two_devices_runs_in_two_processes(tiny_model: Model) -> None:
    ctx: dict[str, Any] = {}
    engine = VllmEngine(await settle(ctx, replace(tiny_model, tensor_parallel=2), Settings(device="cpu")))
    await engine.start()
    try:
        workers = [pid for pid in all_children(os.getpid()) if b"Worker" in cmdline(pid)]
        assert len(workers) == 2
        request = GenerationRequest(prompt="Two halves of one model.", max_tokens=20, sampling={"temperature": 0})
        deltas = [delta async for delta in engine.generate("job", request)]
        assert sum(len(delta.token_ids) for delta in deltas) == 20
    finally:
        await engine.stop()
        leave(ctx)


async def test_an_engine_without_memory_for_its_cache_names_the_keys_to_turn(tiny_model: Model) -> None:
    model = replace(tiny_model, options={"enforce_eager": True, "kv_cache_memory_bytes": 100_000})
    with pytest.raises(SettingsInvalid) as caught:
        await VllmEngine(model).start()
    assert "tiny: nothing is left for the KV cache: raise gpu_share" in str(caught.value)
    assert "No available memory for the cache blocks" in str(caught.value)
