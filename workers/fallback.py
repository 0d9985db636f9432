"""A worker that runs the jobs of another alias, whose fallback chain names this worker's model.

It claims from that alias' own queue, under the same leases and fences as its own workers: no job ever moves from one
queue to another, so each runs once whoever takes it. The script decides at the moment of the claim whether help is
due: `common/lua/help.lua`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from common.catalogue import Catalogue, Model
from common.errors import SettingsInvalid
from common.jobs import ClaimedJob
from common.settings import Settings
from workers.outbox import patiently
from workers.worker import Worker

#: How often it looks. It never waits on the queue's bell, whose one token would then be missed by the queue's own.
LOOK_S = 0.2


class FallbackWorker(Worker):
    """Serves the queue of `helped` with the engine of another model."""

    def __init__(self, functions: Any = (), *, helped: Model, alias: str, **arq_settings: Any) -> None:
        super().__init__(functions, **arq_settings)
        self.id += f"@{alias}"  # what the job's record and the scripts tell by whose model ran it
        self._after_s = helped.fallback_after_s * (helped.fallback.index(alias) + 1)
        self._before = helped.fallback[: helped.fallback.index(alias)]

    async def _claim(self, want: int, room: int) -> list[ClaimedJob]:
        call = (self.queue_name, self.id, want, self._request, self._after_s, self._before)
        return await patiently(self.queue.help, *call)  # type: ignore[no-any-return]

    async def _more(self) -> bool:
        if self.burst:
            return await super()._more()
        await asyncio.sleep(LOOK_S)
        return True

    def _fills_at_once(self) -> bool:
        return False


def settings_for(catalogue: Catalogue, model: Model, helped: str, settings: Settings) -> dict[str, Any]:
    """The settings of a worker that runs the jobs of `helped` on this model, by keyword."""
    from workers.generation import settings_for

    first = catalogue.get(model.kind, helped)
    if model.alias not in first.fallback:
        chain = ", ".join(first.fallback) or "nothing"
        raise SettingsInvalid(f"{first.place}: {helped} does not fall back to {model.alias}; its fallback is {chain}")
    # What its jobs leave out is what the alias that they asked for has by default.
    model = dataclasses.replace(model, defaults=first.defaults)
    return {**settings_for(model, settings), "queue_name": first.queue, "helped": first, "alias": model.alias}
