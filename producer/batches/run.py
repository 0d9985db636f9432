"""One batch while this process has it: from the state that it is found in to the one that ends it.

Nothing is kept in memory that the next owner would miss. Whoever lost the batch learns that from its next move or its
clock, and stops there: nothing it does afterwards counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from common.batches import (
    OVER,
    Batch,
    Batches,
    BatchState,
    Claimed,
    LineError,
    Live,
    Moved,
    Part,
    Standing,
    Stored,
    Stretch,
)
from common.errors import JarvisError, NotFound, StoreUnavailable
from common.files import AFTERWARDS_S, FileRecord, made
from producer.batches import lines, stretches
from producer.batches.stretches import Collected, OpenStretch, Tools

log = logging.getLogger("jarvis.batches")

#: A batch that so many owners took without getting on is given up: it is what they died of.
MOST_CLAIMS = 10
#: How often a batch's jobs are looked at; the pause grows while nothing ends.
LOOK_S, LONGEST_LOOK_S = 0.05, 0.25
#: Jobs go to the queue as fast as they end, and a little faster: a worker that is given hundreds at once is busy with
#: taking them while somebody waits for an answer.
AT_ONCE = 8


class Lost(JarvisError):
    """The batch is another process' now."""


class Halted(JarvisError):
    """The batch is to stop: it is being cancelled, or its window is over."""


@dataclass(slots=True)
class Seen:
    """What the last renewal said, and until when the batch is surely ours (CLOCK_MONOTONIC, s)."""

    standing: Standing
    at: float
    held_until: float


class Run:
    """Works on one claimed batch as `owner`."""

    def __init__(self, tools: Tools, batches: Batches, claimed: Claimed, owner: str, share: Callable[[], int]) -> None:
        self.tools = tools
        self.batches = batches
        self.id = claimed.id
        self.claims = claimed.claims
        self.owner = owner
        self.share = share  # jobs that it may have in the queue now
        self._lease_s = tools.settings.lease_s
        self._seen: Seen | None = None
        self._open: dict[int, OpenStretch] = {}
        self._pace = AT_ONCE  # jobs that are submitted between two looks
        self._looked = False  # until then an earlier owner knew better what has ended
        self._telling = asyncio.Lock()  # a stretch's lines are counted as under way or as stored, never as both

    async def work(self) -> None:
        """Bring the batch to its end. Raises Lost, or StoreUnavailable: then it is taken up again later."""
        await self._renew()
        beating = asyncio.create_task(self._beat())
        working = asyncio.create_task(self._through())
        try:
            done, _ = await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (beating, working):
                task.cancel()
            await asyncio.gather(beating, working, return_exceptions=True)

    # -- having it

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._lease_s / 4))
            with suppress(StoreUnavailable):  # the clock says when it is lost
                await self._renew()
            self._check()

    async def _renew(self) -> None:
        async with self._telling:
            asked = time.monotonic()
            standing = await self.batches.renew(self.id, self.owner, self._live if self._looked else None)
            if standing is None:
                raise Lost()
            self._seen = Seen(standing, asked, asked + self._lease_s)

    @property
    def _live(self) -> Live:
        return sum((one.live for one in self._open.values()), Live())

    def _check(self) -> Seen:
        """Raise Lost unless the batch is surely still ours."""
        assert self._seen
        if time.monotonic() >= self._seen.held_until:
            raise Lost()
        return self._seen

    @property
    def _left_s(self) -> float:
        seen = self._check()
        return seen.standing.left_s - (time.monotonic() - seen.at)

    def _lives(self) -> None:
        """Raise Halted when the batch is to stop, Lost when it is not ours."""
        if self._check().standing.state == BatchState.CANCELLING or self._left_s <= 0:
            raise Halted()

    def _kept(self, answer: Moved | Stored) -> None:
        if answer == "lost":
            raise Lost()

    # -- from state to state

    async def _through(self) -> None:
        steps = {
            BatchState.VALIDATING: self._validate,
            BatchState.IN_PROGRESS: self._feed,
            BatchState.FINALIZING: self._finalize,
            BatchState.CANCELLING: self._finalize,
        }
        while (batch := await self.batches.get(self.id)).state not in OVER:
            if self.claims > MOST_CLAIMS:
                message = f"{MOST_CLAIMS} processes ended while they worked on it"
                await self._fail(LineError("batch_broken", message))
                continue
            try:
                await steps[batch.state](batch)
            except FileNotFoundError:
                await self._fail(LineError("file_lost", "the content of the input file is gone", "input_file_id"))
        log.info("batch %s is %s: %d of %d lines completed", batch.id, batch.state, batch.completed, batch.total)

    async def _fail(self, *errors: LineError) -> None:
        batch, parts = await self.batches.get(self.id), await self.batches.parts(self.id)
        self._kept(await self.batches.fail(self.id, self.owner, list(errors)))
        await self.tools.queue.cancel_each([job for one in self._open.values() for job in one.running])
        await self._clear(batch, list(parts.values()))

    async def _validate(self, batch: Batch) -> None:
        try:
            self._lives()
            checked = await lines.check(batch.asked, self.tools.here, self.tools.settings, self._lives)
        except Halted:
            if self._check().standing.state != BatchState.CANCELLING:
                self._kept(await self.batches.end(self.id, self.owner, BatchState.EXPIRED, None, None))
            return
        if checked.errors:
            await self._fail(*checked.errors)
        else:
            answer = await self.batches.plan(self.id, self.owner, checked.total, checked.plan, checked.model)
            self._kept(answer)

    async def _feed(self, batch: Batch) -> None:
        """Keep so many jobs of the batch in the queue until all its lines have ended, or it is to stop."""
        plan = await self.batches.planned(self.id)
        done = await self.batches.parts(self.id)
        left = [number for number in range(len(plan)) if number not in done]
        left.reverse()
        pause_s = LOOK_S
        try:
            while left or self._open:
                self._lives()
                await self._open_more(batch, plan, left)
                before = sum(len(one.running) for one in self._open.values())
                for number in await stretches.look(self.tools, list(self._open.values())):
                    log.warning("batch %s: jobs of stretch %d are lost; they run again", self.id, number)
                    del self._open[number]
                    left.append(number)
                self._looked = True
                ended = before - sum(len(one.running) for one in self._open.values())
                waiting = any(one.waiting for one in self._open.values())
                self._pace = max(AT_ONCE, 2 * ended)
                for one in [one for one in self._open.values() if not one.running]:
                    await self._store(batch, one, None)
                pause_s = LOOK_S if ended or waiting else min(LONGEST_LOOK_S, pause_s * 2)
                if self._open:
                    await asyncio.sleep(pause_s)
            ending = BatchState.COMPLETED
        except Halted:
            if self._check().standing.state == BatchState.CANCELLING:
                return
            ending = BatchState.EXPIRED
        self._kept(await self.batches.finalize(self.id, self.owner, ending))

    async def _open_more(self, batch: Batch, plan: list[Stretch], left: list[int]) -> None:
        share = self.share()
        room = share - sum(one.jobs for one in self._open.values())
        while left and (plan[left[-1]].jobs <= room or not self._open):
            number = left.pop()
            self._open[number] = await stretches.opened(self.tools, batch, number, plan[number], self._left_s)
            room -= plan[number].jobs
        submitted = sum(len(one.running) - len(one.waiting) for one in self._open.values())
        left_now = min(self._pace, share - submitted)
        for one in self._open.values():
            self._lives()  # a job that is submitted by who lost the batch could be one that has been collected
            left_now -= await stretches.submit(self.tools, one, max(0, left_now))

    async def _store(self, batch: Batch, one: OpenStretch, reason: BatchState | None) -> None:
        collected: Collected = await stretches.collect(self.tools, batch, one, reason)
        async with self._telling:
            self._check()
            self._open.pop(one.number, None)
            told = collected.part, collected.counts, self._live, collected.usage
            self._kept(await self.batches.store_part(self.id, self.owner, one.number, *told))
        await self.tools.queue.let_go([job for line in one.lines for job in line.jobs])

    async def _finalize(self, batch: Batch) -> None:
        ending = BatchState.CANCELLED if batch.state == BatchState.CANCELLING else batch.ending
        assert ending
        if ending != BatchState.COMPLETED:
            await self._close(batch, ending)
        parts = await self.batches.parts(self.id)
        in_order = [parts[number] for number in sorted(parts)]
        output = await self._file(batch, "output", [part.output for part in in_order])
        errors = await self._file(batch, "errors", [part.errors for part in in_order])
        self._check()
        self._kept(await self.batches.end(self.id, self.owner, ending, output, errors))
        await self._clear(batch, in_order)

    async def _close(self, batch: Batch, ending: BatchState) -> None:
        """Stop what runs of a batch; what has ended by then counts."""
        plan = await self.batches.planned(self.id)
        done = await self.batches.parts(self.id)
        self._open.clear()
        for number, stretch in enumerate(plan):
            if number in done:
                continue
            self._check()
            one = await stretches.opened(self.tools, batch, number, stretch, 1.0)
            states = await self.tools.results.states(sorted(one.running)) if one.running else []
            there = [job for job, state in zip(sorted(one.running), states, strict=True) if state is not None]
            await self.tools.queue.cancel_each(there)
            await self._store(batch, one, ending)

    async def _file(self, batch: Batch, what: str, references: list[str | None]) -> FileRecord | None:
        given = [reference for reference in references if reference]
        if not given:
            return None
        keep_s = batch.asked.output_kept_s or self.tools.settings.file_kept_s
        blob, size = await self.tools.here.files.blobs.join(given, keep_s + AFTERWARDS_S)
        return made(size, f"{self.id}_{what}.jsonl", "batch_output", keep_s, blob, batch.asked.user)

    async def _clear(self, batch: Batch, parts: list[Part]) -> None:
        """Remove what only a batch under way needs; what a crash leaves goes when its time is over."""
        blobs = self.tools.here.files.blobs
        for part in parts:
            for reference in (part.output, part.errors):
                if reference:
                    await blobs.remove(reference)
        try:
            owned = (await self.tools.here.files.get(batch.asked.input_file_id)).blob == batch.asked.blob
        except NotFound:
            owned = False  # it was deleted meanwhile
        if not owned and not await self.batches.reads(batch.asked.blob):
            await blobs.remove(batch.asked.blob)
