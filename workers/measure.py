"""A short measurement of one model through its engine alone: no queue, no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from common.catalogue import Model
from common.errors import SettingsInvalid
from common.settings import load_settings
from workers.devices import list_devices
from workers.engines import embedding_engine, generation_engine
from workers.engines.protocol import EmbeddingEngine, GenerationEngine, GenerationRequest
from workers.placement import leave, settle

PROMPT = "Describe in your own words how a queue hands out work, number {}: "
AT_ONCE = 16  # prompts, or as many as the model has slots
TOKENS = 64  # of each answer
SINGLES = 5  # prompts one after another, for the first token when idle
TEXTS = 512
MIB = 1 << 20


def measure(model: Model) -> dict[str, Any]:
    """Load the model, use it for some seconds; returns figures by name (`_s` seconds, `_ms` milliseconds).

    Raises SettingsInvalid for a kind that is not measured here, and while workers hold the GPUs that it needs.
    """
    import uvloop

    if model.kind not in ("generation", "embedding"):
        raise SettingsInvalid(
            f"{model.place}: {model.alias} is for {model.kind}; measured are generation and embedding"
        )
    return uvloop.run(_placed(model, _generation if model.kind == "generation" else _embedding))


async def _placed(model: Model, run: Callable[[Model], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    ctx: dict[str, Any] = {}
    fitted = await settle(ctx, model, load_settings(device_wait=False))
    try:
        return {"device": ctx["device"], **await run(fitted)}
    finally:
        leave(ctx)


async def _generation(model: Model) -> dict[str, Any]:
    free, engine, started = _free_bytes(), generation_engine(model), time.perf_counter()
    await engine.start()
    start_s = time.perf_counter() - started
    try:
        tokens = min(TOKENS, model.max_model_len // 2)
        at_once = min(AT_ONCE, model.slots)
        await _round(engine, "warm", at_once, tokens)
        whole_s, made, _ = await _round(engine, "many", at_once, tokens)
        firsts = [(await _round(engine, f"one{i}", 1, 8))[2] for i in range(SINGLES)]
        return {
            "start_s": start_s,
            "at_once": at_once,
            "tokens_s": made / whole_s,
            "ttft_p50_ms": 1000 * statistics.median(firsts),
            **_memory(free),
        }
    finally:
        await engine.stop()


async def _round(engine: GenerationEngine, name: str, count: int, tokens: int) -> tuple[float, int, float]:
    """Seconds until the last of `count` answers ends, their tokens, and seconds to the first token of the first."""
    started = time.perf_counter()
    done = await asyncio.gather(*(_answer(engine, f"{name}-{i}", PROMPT.format(i), tokens) for i in range(count)))
    return time.perf_counter() - started, sum(made for made, _ in done), done[0][1] - started


async def _answer(engine: GenerationEngine, name: str, prompt: str, tokens: int) -> tuple[int, float]:
    # Greedy and to the end: every model makes the same number of tokens.
    sampling = {"temperature": 0.0, "ignore_eos": True}
    request = GenerationRequest(prompt=prompt, max_tokens=tokens, sampling=sampling)
    made, first = 0, 0.0
    async for delta in engine.generate(name, request):
        first = first or (time.perf_counter() if delta.token_ids else 0.0)
        made += len(delta.token_ids)
    return made, first


async def _embedding(model: Model) -> dict[str, Any]:
    free, engine = _free_bytes(), embedding_engine(model, load_settings().data_dir)
    started = time.perf_counter()
    await engine.start()
    start_s = time.perf_counter() - started
    try:
        await _embed(engine, TEXTS // 8)
        whole_s = await _embed(engine, TEXTS)
        return {"start_s": start_s, "texts": TEXTS, "texts_s": TEXTS / whole_s, **_memory(free)}
    finally:
        await engine.stop()


async def _embed(engine: EmbeddingEngine, count: int) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(engine.embed([PROMPT.format(i)]) for i in range(count)))
    return time.perf_counter() - started


def _memory(free: int | None) -> dict[str, float | None]:
    """What the model takes of this machine now, and of its GPUs since they had `free` bytes."""
    return {"memory_mib": resident_mib(), "vram_mib": (free - (_free_bytes() or 0)) / MIB if free else None}


def _free_bytes() -> int | None:
    """Free memory of all GPUs together; None where there is none, or where they are simulated."""
    real = [device for device in list_devices(load_settings()) if not device.simulated]
    return sum(device.free_bytes or 0 for device in real) or None


def resident_mib() -> float | None:
    """Memory of this process and of all below it, engine processes too; None where there is no /proc.

    Proportional: a page that several of them share counts once.
    """
    root = Path("/proc")
    if not (root / "self" / "smaps_rollup").exists():
        return None
    pids, family = [os.getpid()], []
    while pids:
        family.append(pid := pids.pop())
        with contextlib.suppress(OSError):  # it has ended
            for listed in (root / str(pid) / "task").glob("*/children"):
                pids += map(int, listed.read_text().split())
    return sum(map(_proportional_kib, family)) / 1024


def _proportional_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
