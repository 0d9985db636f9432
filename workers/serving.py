"""What every job function of the catalogue's kinds needs around it: its engine started, brought back, let go."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from common.catalogue import Catalogue, Model
from common.errors import EngineDead, JobFailed
from common.settings import Settings, load_settings
from workers.engines.protocol import Engine, Measured
from workers.engines.revival import Revival
from workers.placement import leave, loading, settle

Hook = Callable[[dict[str, Any]], Awaitable[None]]


def starter(kind: str, engine_of: Callable[[Model, Settings], Engine]) -> Hook:
    """An `on_startup` that loads the engine of `ctx["model"]`, else of the catalogue's first model of this kind."""

    async def on_startup(ctx: dict[str, Any]) -> None:
        settings = ctx.get("settings") or load_settings()
        model: Model = ctx.get("model") or Catalogue.load(settings.catalogue).of_kind(kind)[0]
        started = time.monotonic()
        engine = engine_of(await settle(ctx, model, settings), settings)
        async with loading(ctx, model, settings):
            await engine.start()
        ctx.update(settings=settings, model=model, engine=engine, revival=Revival(engine))
        if isinstance(engine, Measured):
            ctx.update(admits=engine.admits, figures=engine.figures)
        took_s = time.monotonic() - started
        logging.getLogger(f"jarvis.{kind}").info(
            "loaded %s: %s %s in %.1f s", model.queue, model.engine, model.weights, took_s
        )

    return on_startup


async def on_shutdown(ctx: dict[str, Any]) -> None:
    """Let the engine go."""
    if "engine" in ctx:
        await ctx["revival"].end()
        await ctx["engine"].stop()
    leave(ctx)


@asynccontextmanager
async def revived(ctx: dict[str, Any]) -> AsyncIterator[None]:
    """A block that uses the engine, alive: when it dies there, it is restarted, and the job fails to be tried again."""
    try:
        await ctx["revival"].ready()
        yield
    except EngineDead as death:
        ctx["revival"].begin()
        raise JobFailed("engine_died", str(death), retryable=True) from death


def worker_settings(function: Any, on_startup: Hook, model: Model, settings: Settings) -> dict[str, Any]:
    """The worker's settings for one model, by keyword."""
    model = replace(model, slots=settings.slots or model.slots)
    return {
        "functions": [function],
        "on_startup": on_startup,
        "on_shutdown": on_shutdown,
        "queue_name": model.queue,
        "max_jobs": model.slots,
        "ctx": {"model": model, "settings": settings},
    }
