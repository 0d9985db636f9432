"""Deltas that are taken within vLLM's own step, without a task that wakes for each of them.

vLLM's front end puts every output of a step into its request's collector, and a task of that request takes it from
there. For a small model those wakes cost as much as all else that the worker does with a token. So the collector's
`put` is replaced by one that hands the output on at once; and where nobody reads the answer as it grows, vLLM is told
to make one output of several tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from workers.engines.protocol import GenerationDelta, Take


class Handover:
    """One request in vLLM, from its first output to its last."""

    def __init__(self, llm: Any, collector: Any, delta_of: Callable[[Any], GenerationDelta], take: Take) -> None:
        self._llm = llm
        self._collector = collector
        self._delta_of = delta_of
        self._take = take
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finished = False  # vLLM is through with it

    async def run(self) -> None:
        """Hand over until the last output, or until no more are wanted. Raises what vLLM or the taker raises."""
        # What came before the collector's `put` was ours; nothing can come in between.
        first = self._collector.get_nowait()
        self._state = self._llm.output_processor.request_states.get(self._collector.request_id)
        self._collector.put = self._put
        if first is not None:
            self._put(first)
        try:
            await self._ended
        finally:
            self._ended.cancel()
            if not self._finished and not self._llm.errored:
                await self._llm.abort(self._collector.request_id, internal=True)

    def _put(self, output: Any) -> None:
        # An error that left this would end vLLM's loop, and with it every other request.
        if self._ended.done():
            return
        if isinstance(output, Exception):
            self._ended.set_exception(output)
            return
        try:
            self._finished = output.finished
            tokens = self._take(self._delta_of(output.outputs[0]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the request's own task raises it
            self._ended.set_exception(error)
            return
        if output.finished or tokens < 1:
            self._ended.set_result(None)
        elif tokens != self._state.stream_interval:
            self._gather(tokens)

    def _gather(self, tokens: int) -> None:
        # vLLM counts what it has given away only while it gathers; at this moment it has given away all.
        self._state.stream_interval = tokens
        self._state.sent_tokens_offset = self._state.detokenizer.num_output_tokens()
