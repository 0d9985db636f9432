"""One model, with batches made of whatever texts wait; shared by all embedding engines.

Each waiting call gets its share of a batch, so that one text does not wait behind another job's two thousand. A batch
is bounded by tokens and goes through the model in groups of like length, so that little is computed for padding. A
text is tokenised once, when it comes: its tokens bound the batch, go into the model and are what usage counts. A batch
never waits for company unless `batch_wait_ms` says how long it may.

Calls of the low lane let the others go first. While others come, low groups are small and leave one thread free, so
that whoever waits finds one; but after so many batches of the others, a low group goes through. On Linux the threads of
low groups are niced as well: on a CPU they get what the others, web and Redis leave.

On a CPU each core runs a group of its own. All cores on one group would meet at the end of every operation, where the
one that web or Redis was given holds up the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from common.catalogue import Model
from common.embedding_presets import EMBEDDING_PRESETS
from common.errors import EngineDead, JobFailed, SettingsInvalid
from workers.engines.calls import Call, Done, Piece
from workers.engines.grouping import Grouping
from workers.engines.memory import advice
from workers.engines.protocol import EmbeddingBatch
from workers.engines.text import Text, TextReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Tokens = NDArray[np.int64]

log = logging.getLogger("jarvis.engines")

#: A hundred short texts: enough of each length to make groups of, and well under a second of a small model on a CPU.
BATCH_TOKENS = 4096
#: Tokens of a group on one core: what a small model computes of so many stays near that core's cache. Of MiniLM, 32
#: short texts at once took a quarter more CPU time each than 8 or 16 did (torch, one thread, on a busy machine).
CPU_GROUP_TOKENS = 512
#: A group costs MiniLM on one core as much as eight tokens, beside its own (ONNX: 1.1 ms, and 0.15 ms a token).
CPU_GROUPING = Grouping(CPU_GROUP_TOKENS, cost=8)
#: While calls of the other lanes come, and for so long after the last one, low groups are so many times smaller.
LOW_YIELDS_S = 2.0
LOW_PART = 4
#: Batches of the others after which a low group goes through, however many wait.
LOW_PASSED = 16
LOW_NICE = 10
#: While so many calls wait for a batch, those that are done are told so together (`Done`).
CROWD = 32
#: More characters than this are tokenised beside the event loop: they take longer than a millisecond.
INLINE_CHARACTERS = 4_000


class Encoder(Protocol):
    """A loaded model, which several threads run at once."""

    reader: TextReader
    pad_id: int
    dimensions: int
    pooling: str
    pools_prompt: bool  # false: the vectors are made without the prompt's tokens, which no batch of ours does
    grouping: Grouping  # what goes through the model together
    threads: int  # groups at once

    def enter_thread(self) -> None:
        """Prepare a thread that will run it."""

    def encode(self, ids: Tokens, mask: Tokens) -> Vectors:
        """A vector for each row of `ids` (texts, tokens); `mask` is 1 where there is a token and 0 where padding."""


class BatchingEngine(ABC):
    """One embedding model; what kind of model it is, a subclass says in `load`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.budget: int = model.options.get("batch_tokens", BATCH_TOKENS)
        self.wait_s: float = model.options.get("batch_wait_ms", 0) / 1000
        self.batches: list[int] = []  # sizes of the latest batches, for tests and measurements
        self._calls: list[Call] = []
        self._came = asyncio.Event()
        self._encoder: Encoder | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._low_pool: ThreadPoolExecutor | None = None
        self._batcher: asyncio.Task[None] | None = None
        self._groups: set[asyncio.Task[None]] = set()  # in the pool
        self._done = Done()
        self._yield_until = 0.0  # low calls leave room for others (CLOCK_MONOTONIC, s)

    @abstractmethod
    def load(self) -> Encoder:
        """The model, ready to run in the calling thread. Raises SettingsInvalid when the weights do not fit it."""

    async def start(self) -> None:
        """Load the model and begin."""
        self._encoder = encoder = await asyncio.to_thread(self.load)
        check_weights(self.model, encoder)
        self._pool = ThreadPoolExecutor(encoder.threads, "embedding", encoder.enter_thread)
        self._low_pool = ThreadPoolExecutor(encoder.threads, "low", _enter_low_thread, (encoder,))
        self._batcher = asyncio.create_task(self._batch_for_ever(encoder))

    async def stop(self) -> None:
        """Give up what is under way; calls that are not done get EngineDead."""
        tasks = [*self._groups, *([self._batcher] if self._batcher else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for pool in (self._pool, self._low_pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._encoder = self._pool = self._low_pool = self._batcher = None

    async def restart(self) -> None:
        """Load the model again if the batcher is gone."""
        if not self.alive:
            await self.stop()
            await self.start()

    @property
    def alive(self) -> bool:
        """Whether the batcher runs."""
        return self._batcher is not None and not self._batcher.done()

    async def embed(self, texts: list[str], truncate: bool = True, low: bool = False) -> EmbeddingBatch:
        """The texts' vectors. A caller that is cancelled takes its texts out of the batches to come.

        Raises JobFailed for a text that cannot be read or, without `truncate`, is longer than the model takes.
        """
        import numpy as np

        if self._encoder is None:
            raise EngineDead("the embedding engine is not running")
        encoder = self._encoder
        read = await self._read(encoder.reader, texts)
        if not truncate:
            _refuse_long(read, encoder.reader.limit)
        if not self.alive:  # it stopped while the texts were read
            raise EngineDead("the embedding engine stopped")
        vectors = np.empty((len(texts), encoder.dimensions), np.float32)
        call = Call(read, asyncio.get_running_loop().create_future(), vectors, low)
        if not low:
            self._yield_until = time.monotonic() + LOW_YIELDS_S
        self._calls.append(call)
        self._came.set()
        return await call.done

    async def _read(self, reader: TextReader, texts: list[str]) -> list[Text]:
        try:
            if sum(map(len, texts)) <= INLINE_CHARACTERS:
                return reader.read(texts)
            return await asyncio.to_thread(reader.read, texts)
        except (TypeError, ValueError) as error:  # a lone surrogate has no encoding
            raise JobFailed("invalid_request", f"a text cannot be read: {error}") from error

    async def _batch_for_ever(self, encoder: Encoder) -> None:
        try:
            while True:
                await self._something_to_do()
                # A batch is made when a thread is free for it, so that all that has come by then may be in it.
                await self._free_thread(encoder.threads * 2 if self._enough(encoder) else encoder.threads)
                # Low calls let the others go first by themselves, so that they are not passed over for ever.
                await self._through(encoder, low=any(call.todo and call.low for call in self._calls))
        finally:
            self._done.tell()
            for call in self._calls:
                call.fail(EngineDead("the embedding engine stopped"))
            self._calls = []

    async def _through(self, encoder: Encoder, low: bool) -> None:
        """Put a batch of the low calls, or of the others, through the model; others that come meanwhile go first."""
        for group in self._grouped(self._next_batch(low), encoder, self._grouping(encoder, low)):
            if low:
                await self._others_first(encoder)
            # A group for each thread waits in the pool: the event loop may be busy when a thread gets free.
            await self._free_thread(encoder.threads if low else encoder.threads * 2)
            task = asyncio.create_task(self._run(group))
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    def _enough(self, encoder: Encoder) -> bool:
        """Whether so much waits that a batch gains next to nothing from what comes until a thread is free."""
        waiting = sum(call.waiting for call in self._calls if not (call.low or call.done.done()))
        return waiting >= min(self.budget, encoder.threads * 2 * encoder.grouping.tokens)

    @property
    def _crowded(self) -> bool:
        return sum(bool(call.todo) for call in self._calls if not (call.low or call.done.done())) >= CROWD

    @property
    def _others_wait(self) -> bool:
        return any(call.todo and not call.low and not call.done.done() for call in self._calls)

    async def _others_first(self, encoder: Encoder) -> None:
        """Wait until a low group may go through, and let through whoever comes meanwhile."""
        for _ in range(LOW_PASSED):
            while not self._others_wait:
                yields = time.monotonic() < self._yield_until
                if len(self._groups) < (max(1, encoder.threads - 1) if yields else encoder.threads):
                    return
                self._came.clear()
                came = asyncio.create_task(self._came.wait())
                try:
                    await asyncio.wait({*self._groups, came}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    came.cancel()
            await self._through(encoder, low=False)

    def _grouping(self, encoder: Encoder, low: bool) -> Grouping:
        if low and time.monotonic() < self._yield_until:
            return replace(encoder.grouping, tokens=max(1, encoder.grouping.tokens // LOW_PART))
        return encoder.grouping

    async def _free_thread(self, groups: int) -> None:
        """Wait until fewer than so many groups are in the pool."""
        while len(self._groups) >= groups:
            await asyncio.wait(self._groups, return_when=asyncio.FIRST_COMPLETED)

    async def _something_to_do(self) -> None:
        while True:
            self._calls = [call for call in self._calls if not call.done.done()]
            if any(call.todo for call in self._calls):
                return await self._company()
            self._came.clear()
            await self._came.wait()

    async def _company(self) -> None:
        """Wait for a batch to fill, at most so long that the oldest call has waited for the bound."""
        until = min(call.came for call in self._calls if call.todo) + self.wait_s
        while sum(call.waiting for call in self._calls) < self.budget and (left := until - time.monotonic()) > 0:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except TimeoutError:
                return

    def _next_batch(self, low: bool) -> list[Piece]:
        """Texts of all waiting calls of this kind, to the budget: first a share each, then the rest as they came."""
        calls = [call for call in self._calls if call.todo and call.low == low]
        batch: list[Piece] = []
        left = self.budget
        for allowed in (self.budget // max(1, len(calls)), self.budget):
            for call in calls:
                share = min(allowed, left)
                while call.todo and share > 0:
                    index = call.pop()
                    batch.append((call, index))
                    share -= (cost := len(call.texts[index].ids))
                    left -= cost
        return batch

    def _grouped(self, batch: list[Piece], encoder: Encoder, grouping: Grouping) -> list[list[Piece]]:
        """The batch in groups of like length, the longest first; at least one for each thread."""
        self.batches = [*self.batches[-99:], len(batch)]
        batch.sort(key=lambda piece: len(piece[0].texts[piece[1]].ids), reverse=True)
        lengths = [len(call.texts[index].ids) for call, index in batch]
        rest = iter(batch)
        return [list(islice(rest, size)) for size in grouping.sizes(lengths, most=-(-len(batch) // encoder.threads))]

    async def _run(self, group: list[Piece]) -> None:
        assert self._encoder is not None, "set at start"
        pool = self._low_pool if group[0][0].low else self._pool
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(pool, _encoded, self._encoder, group)
        except Exception as error:  # noqa: BLE001 - a backend raises anything; it is one call's fault
            await self._blame(group, error)
            return
        self._done.add(encoded, later=self._crowded)

    async def _blame(self, group: list[Piece], error: Exception) -> None:
        """One bad text must not fail the others' jobs: find whose it is by running each call's part alone."""
        calls = list(dict.fromkeys(call for call, _ in group))
        if len(calls) > 1:
            for call in calls:
                await self._run([piece for piece in group if piece[0] is call])
            return
        bad_input = isinstance(error, (TypeError, ValueError))
        code = "invalid_request" if bad_input else "engine_error"
        told = f"{type(error).__name__}: {error}"
        log.warning("embedding failed: %s", told)
        if what := advice(told, self.model):
            code, told = "out_of_memory", f"{what} ({told})"
        calls[0].fail(JobFailed(code, told, retryable=not bad_input))


def _encoded(encoder: Encoder, group: list[Piece]) -> list[tuple[Piece, Vectors]]:
    """The vector of each text whose call still waits for it. Runs in a thread: a call may end while it does."""
    wanted = [piece for piece in group if not piece[0].done.done()]
    if not wanted:
        return []
    vectors = encoder.encode(*padded([call.texts[index] for call, index in wanted], encoder.pad_id))
    return list(zip(wanted, vectors, strict=True))


def _enter_low_thread(encoder: Encoder) -> None:
    if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_NICE)
    encoder.enter_thread()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def padded(texts: list[Text], pad_id: int) -> tuple[Tokens, Tokens]:
    """The texts' tokens as one array, each row filled up at its end, and which of it are tokens."""
    import numpy as np

    length = max(1, *(len(text.ids) for text in texts))
    ids = np.full((len(texts), length), pad_id, np.int64)
    mask = np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        mask[row, : len(text.ids)] = 1
    return ids, mask


def check_weights(model: Model, encoder: Encoder) -> None:
    """Raise SettingsInvalid when what was loaded is not what the catalogue's entry is about."""
    preset = EMBEDDING_PRESETS.get(model.preset or "")
    has = f"the weights have {encoder.dimensions} dimensions and {encoder.pooling} pooling"
    if preset and (preset.vector_size, preset.pooling) != (encoder.dimensions, encoder.pooling):
        wanted = f"preset {model.preset} is a model of {preset.vector_size} and {preset.pooling}"
        raise SettingsInvalid(f"{model.place_of('preset')}: {model.alias}: {has}; {wanted}")
    if too_large := [size for size in model.dimensions if size > encoder.dimensions]:
        raise SettingsInvalid(f"{model.place_of('dimensions')}: {model.alias}: {has}; dimensions has {too_large[0]}")
    if model.prompts and not encoder.pools_prompt:
        raise SettingsInvalid(f"{model.place_of('prompts')}: {model.alias}: the weights' pooling leaves prompts out")


def _refuse_long(texts: list[Text], limit: int) -> None:
    for index, text in enumerate(texts):
        if text.tokens > limit:
            raise JobFailed("text_too_long", f"texts[{index}] has {text.tokens} tokens, the model takes {limit}")
