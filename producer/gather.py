"""Submits that come together go to Redis together: what comes while calls are under way goes out in the next one.

Nothing waits for company: a submit that finds no call under way is sent at once. Each caller gets its own answer
or refusal; one that leaves takes nobody with it, and its job stays submitted as after any lost answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from common.errors import StoreUnavailable
from common.jobs import JobSpec, Submitted
from common.queue import SUBMIT_BATCH, Key, Queue

#: Calls under way at a time: while Redis runs one, this process makes and reads the other.
CALLS = 2


@dataclass(slots=True, eq=False)
class Waiting:
    """One job that is not sent yet, and who waits for its answer."""

    spec: JobSpec
    key: Key | None
    answer: asyncio.Future[Submitted] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, answer: Submitted | Exception) -> None:
        """Tell the caller, unless it has gone."""
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Gathering:
    """Gathers the submits of one shard."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[Waiting] = []
        self._under_way = 0
        self._calls: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    async def submit(self, spec: JobSpec, key: Key | None) -> Submitted:
        """Accept one job. Raises QueueFull, IdempotencyMismatch, StoreUnavailable."""
        waiting = Waiting(spec, key)
        self._waiting.append(waiting)
        if self._under_way < CALLS:
            self._under_way += 1
            # Its first step comes after those of all requests that arrived with this one.
            call = asyncio.create_task(self._send_all())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await waiting.answer

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:SUBMIT_BATCH], self._waiting[SUBMIT_BATCH:]
                await self._send(batch)
        finally:
            self._under_way -= 1  # here and not when the task is over: whoever comes between must start a new one

    async def _send(self, batch: list[Waiting]) -> None:
        try:
            answers = await self._queue.submit_each([one.spec for one in batch], [one.key for one in batch])
        except BaseException as error:
            self._fail(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            for one, answer in zip(batch, answers, strict=True):
                one.settle(answer)

    def _fail(self, batch: list[Waiting], error: BaseException) -> None:
        reason = error if isinstance(error, Exception) else StoreUnavailable("this process stops")
        if isinstance(reason, StoreUnavailable):
            # Whoever has gathered behind a Redis that does not answer would wait for its timeout again.
            batch, self._waiting = batch + self._waiting, []
        for one in batch:
            one.settle(reason)
