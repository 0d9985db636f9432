"""Pieces of many jobs, taken in turns: high lane first, then each job a piece at a time.

A job's pieces stand in a line of its own. A batch is filled from the lines of the highest lane, those that had the
fewest turns first, and mixes jobs as far as their pieces go together. Beside the batch that runs there is one express
place, for pieces of a lane above the lowest that runs: they start at once, however long a batch takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import EngineDead, JobFailed
from common.jobs import LANES, Priority

log = logging.getLogger("jarvis.engines")

Run = Callable[[list[Any]], Awaitable[Sequence[Any]]]


@dataclass(eq=False, slots=True)
class Piece:
    """One piece of work: `key` says which others can share its batch."""

    work: Any
    key: Hashable
    line: Line
    done: asyncio.Future[Any]


@dataclass(eq=False, slots=True)
class Line:
    """What one job has waiting, in order; `turns` counts the pieces it was given, from where its lane stood."""

    rank: int  # of its lane: 0 is high
    turns: int
    pieces: deque[Piece] = field(default_factory=deque)


class Interleaver:
    """Forms batches of at most `size` pieces and has `run` work on them, two batches at a time at most."""

    def __init__(self, run: Run, size: int) -> None:
        self.size = size
        self.batches: list[list[Any]] = []  # works of the latest batches, for tests and measurements
        self._run = run
        self._lines: list[Line] = []
        self._came = asyncio.Event()
        self._ordinary: list[Piece] = []
        self._express: list[Piece] = []
        self._running: set[asyncio.Task[None]] = set()

    def open(self, lane: Priority) -> Line:
        """A line for one job."""
        rank = LANES.index(lane)
        # Not from 0: a job that comes later would have the engine for itself until it had caught up.
        line = Line(rank, min((other.turns for other in self._lines if other.rank == rank), default=0))
        self._lines.append(line)
        return line

    def put(self, line: Line, work: Any, key: Hashable) -> asyncio.Future[Any]:
        """Have a piece worked on; the answer comes in the future."""
        piece = Piece(work, key, line, asyncio.get_running_loop().create_future())
        line.pieces.append(piece)
        self._came.set()
        return piece.done

    def close(self, line: Line) -> None:
        """The job wants no more: what waits is dropped, what runs is not listened to."""
        self._lines.remove(line)

    async def work(self) -> None:
        """Work until cancelled; what is left then fails with EngineDead."""
        try:
            while True:
                await self._came.wait()
                self._came.clear()
                self._start()
        finally:
            for task in self._running:
                task.cancel()
            left = [*self._ordinary, *self._express, *(piece for line in self._lines for piece in line.pieces)]
            _fail(left, EngineDead("the transcription engine stopped"))
            for line in self._lines:
                line.pieces.clear()

    def _start(self) -> None:
        if not self._ordinary and (batch := self._pick(len(LANES))):
            self._ordinary = batch
            self._begin(batch)
        if self._ordinary and not self._express:
            lowest = max(piece.line.rank for piece in self._ordinary)
            if batch := self._pick(lowest):
                self._express = batch
                self._begin(batch)

    def _begin(self, batch: list[Piece]) -> None:
        self.batches = [*self.batches[-999:], [piece.work for piece in batch]]
        task = asyncio.create_task(self._settle(batch))
        self._running.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._came.set()

    def _pick(self, above: int) -> list[Piece]:
        """Up to a batch of pieces that go together, of lanes above this rank."""
        batch: list[Piece] = []
        while len(batch) < self.size:
            lines = [line for line in self._lines if line.rank < above and _fits(line, batch)]
            if not lines:
                break
            line = min(lines, key=lambda one: (one.rank, one.turns))
            line.turns += 1
            batch.append(line.pieces.popleft())
        return batch

    async def _settle(self, batch: list[Piece]) -> None:
        try:
            await self._answer(batch)
        finally:
            if batch is self._ordinary:
                self._ordinary = []
            else:
                self._express = []

    async def _answer(self, batch: list[Piece]) -> None:
        batch = [piece for piece in batch if not piece.done.done()]
        if not batch:
            return
        try:
            answers = await self._run([piece.work for piece in batch])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - backends raise anything; it is one job's fault, or the engine's
            await self._blame(batch, error)
            return
        for piece, answer in zip(batch, answers, strict=True):
            if not piece.done.done():
                piece.done.set_result(answer)

    async def _blame(self, batch: list[Piece], error: Exception) -> None:
        """One job's bad piece must not fail the others: find whose it is by running each job's pieces alone."""
        lines = list(dict.fromkeys(piece.line for piece in batch))
        if len(lines) > 1 and not isinstance(error, EngineDead):
            for line in lines:
                await self._answer([piece for piece in batch if piece.line is line])
            return
        if not isinstance(error, (EngineDead, JobFailed)):
            log.warning("transcription failed: %s: %s", type(error).__name__, error)
            error = JobFailed("engine_error", f"{type(error).__name__}: {error}", retryable=True)
        _fail(batch, error)


def _fits(line: Line, batch: list[Piece]) -> bool:
    return bool(line.pieces) and (not batch or line.pieces[0].key == batch[0].key)


def _fail(pieces: list[Piece], error: Exception) -> None:
    for piece in pieces:
        if not piece.done.done():
            piece.done.set_exception(error)
            piece.done.exception()  # its job may have left: nobody has to hear of it
