"""Requests that come together begin in one step of the engine.

vLLM's core starts a step with the first request that it has, and all that came a moment later wait for the end of
that step and begin in the next, or in the one after it. Each such step costs nearly as much as a full one, and on a
machine of few cores it takes its time from whoever brings the others. So requests that are made in one turn of the
worker's event loop carry a mark on all but the last, and the core waits for what is announced so. A request that comes
alone has no mark, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import queue
import time
from typing import Any

FOLLOWED = "jarvis_followed"  # another request comes at once, in `extra_args`
#: The core waits no longer than this for what is announced: who announced it may have died.
LIMIT_S = 0.02


class Together:
    """The worker's part: who comes in this turn of the loop."""

    def __init__(self) -> None:
        self._coming: list[asyncio.Future[bool]] = []

    async def followed(self) -> bool:
        """Let all others of this turn come as far as this; returns whether one of them follows."""
        loop = asyncio.get_running_loop()
        here: asyncio.Future[bool] = loop.create_future()
        self._coming.append(here)
        if len(self._coming) == 1:
            loop.call_soon(self._let_go)
        return await here

    def _let_go(self) -> None:
        coming = [one for one in self._coming if not one.done()]
        self._coming.clear()
        for number, one in enumerate(coming, 1):
            one.set_result(number < len(coming))


def marked(params: Any, followed: bool) -> Any:
    """Sampling parameters that say whether another request follows."""
    if followed:
        params.extra_args = {**(params.extra_args or {}), FOLLOWED: True}
    return params


def wait_for_followers() -> None:
    """Have the engine core of this process wait for the requests that are announced to it, before its next step."""
    from vllm.v1.engine.core import EngineCoreProc

    if EngineCoreProc._process_input_queue.__module__ == __name__:
        return  # called more than once here
    add, process = EngineCoreProc.add_request, EngineCoreProc._process_input_queue

    def add_request(core: Any, request: Any, *args: Any) -> None:
        params = request.sampling_params
        core.jarvis_followed = params is not None and FOLLOWED in (params.extra_args or {})
        add(core, request, *args)

    def process_input_queue(core: Any) -> None:
        core.jarvis_followed = False
        process(core)
        until = time.monotonic() + LIMIT_S
        while core.jarvis_followed and (left_s := until - time.monotonic()) > 0:
            try:
                core._handle_client_request(*core.input_queue.get(timeout=left_s))
            except queue.Empty:
                return

    EngineCoreProc.add_request = add_request
    EngineCoreProc._process_input_queue = process_input_queue
