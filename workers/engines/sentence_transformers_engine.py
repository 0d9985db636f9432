"""sentence-transformers in one thread of the worker, with batches made of whatever waits.

A batch never waits for company: when one ends, all that has come meanwhile may go into the next. Each waiting call
gets its share of a batch, so that one text does not wait behind another job's two thousand, and the texts of a batch
are of similar length, so that little is computed for padding. The vectors are those of a direct `encode`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from workers.engines.protocol import EmbeddingBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

log = logging.getLogger("jarvis.engines")

# About a tenth of a second of MiniLM on two cores; a GPU takes the same in well under one.
BATCH_TOKENS = 4096
ENCODE_TEXTS = 32  # texts padded to one length; sentence-transformers' own default


@dataclass(eq=False, slots=True)
class Call:
    """One `embed`: its texts still to do (longest last, so that they pop from the end) and the vectors so far."""

    texts: list[str]
    done: asyncio.Future[EmbeddingBatch]
    todo: list[int] = field(default_factory=list)
    vectors: list[Any] = field(default_factory=list)
    prompt_tokens: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        self.todo = sorted(range(len(self.texts)), key=lambda index: len(self.texts[index]))
        self.vectors = [None] * len(self.texts)
        self.missing = len(self.texts)


Piece = tuple[Call, int]  # a call and the index of one of its texts


class SentenceTransformersEngine:
    """One embedding model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.budget: int = model.options.get("batch_tokens", BATCH_TOKENS)
        self.batches: list[int] = []  # sizes of the latest batches, for tests and measurements
        self._calls: list[Call] = []
        self._came = asyncio.Event()
        self._encoder: Any = None
        self._thread: ThreadPoolExecutor | None = None
        self._batcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model in the thread that will run it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding")
        self._encoder = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self._batcher = asyncio.create_task(self._batch_for_ever())

    async def stop(self) -> None:
        """End after the batch in progress; calls still waiting get EngineDead."""
        if self._batcher is not None:
            self._batcher.cancel()
            await asyncio.wait([self._batcher])
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self._encoder = self._thread = self._batcher = None

    async def restart(self) -> None:
        """Load the model again if the batcher is gone."""
        if not self.alive:
            await self.stop()
            await self.start()

    @property
    def alive(self) -> bool:
        """Whether the batcher runs."""
        return self._batcher is not None and not self._batcher.done()

    async def embed(self, texts: list[str]) -> EmbeddingBatch:
        """The texts' vectors. A caller that is cancelled takes its texts out of the batches to come."""
        if not self.alive:
            raise EngineDead("the embedding engine is not running")
        call = Call(texts, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._came.set()
        return await call.done

    def _load(self) -> Any:
        if self.model.local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from sentence_transformers import SentenceTransformer

        options = self.model.engine_options
        if "threads" in options:
            torch.set_num_threads(options["threads"])
        loading = {"dtype": options["dtype"]} if "dtype" in options else None
        return SentenceTransformer(
            self.model.weights_path(),
            device=options.get("device"),
            revision=options.get("revision"),
            local_files_only=self.model.local,
            model_kwargs=loading,
        )

    async def _batch_for_ever(self) -> None:
        try:
            while True:
                self._calls = [call for call in self._calls if not call.done.done()]
                if not self._calls:
                    self._came.clear()
                    await self._came.wait()
                await self._run(self._next_batch())
        finally:
            for call in self._calls:
                _fail(call, EngineDead("the embedding engine stopped"))
            self._calls = []

    def _next_batch(self) -> list[Piece]:
        """Texts of all waiting calls, up to the budget: first a share each, then the rest in order of arrival."""
        calls = [call for call in self._calls if call.todo]
        batch: list[Piece] = []
        left = self.budget
        for allowed in (self.budget // max(1, len(calls)), self.budget):
            for call in calls:
                share = min(allowed, left)
                while call.todo and share > 0:
                    index = call.todo.pop()
                    batch.append((call, index))
                    share -= (cost := self._cost(call.texts[index]))
                    left -= cost
        return batch

    def _cost(self, text: str) -> int:
        # An estimate is enough to bound a batch: English has about four characters a token.
        return min(len(text) // 4 + 4, self.model.max_model_len)

    async def _run(self, batch: list[Piece]) -> None:
        if not batch:
            return
        self.batches = [*self.batches[-99:], len(batch)]
        try:
            vectors, tokens = await self._encode([call.texts[index] for call, index in batch])
        except Exception as error:  # noqa: BLE001 - torch and tokenizers raise anything; it is one call's fault
            await self._blame(batch, error)
            return
        for (call, index), vector, count in zip(batch, vectors, tokens, strict=True):
            _add(call, index, vector, count)

    async def _blame(self, batch: list[Piece], error: Exception) -> None:
        """One bad text must not fail the others' jobs: find whose it is by running each call's part alone."""
        calls = list(dict.fromkeys(call for call, _ in batch))
        if len(calls) > 1:
            for call in calls:
                await self._run([piece for piece in batch if piece[0] is call])
            return
        bad_input = isinstance(error, (TypeError, ValueError))
        code = "invalid_request" if bad_input else "engine_error"
        log.warning("embedding failed: %s: %s", type(error).__name__, error)
        _fail(calls[0], JobFailed(code, f"{type(error).__name__}: {error}", retryable=not bad_input))

    async def _encode(self, texts: list[str]) -> tuple[Vectors, list[int]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encode_here, texts)

    def _encode_here(self, texts: list[str]) -> tuple[Vectors, list[int]]:
        # encode sorts by length itself before it cuts the texts into padded batches.
        vectors = self._encoder.encode(texts, batch_size=ENCODE_TEXTS, show_progress_bar=False)
        limit = self._encoder.max_seq_length
        read = self._encoder.tokenizer(texts, truncation=limit is not None, max_length=limit)
        return vectors, [len(ids) for ids in read["input_ids"]]


def _add(call: Call, index: int, vector: Any, tokens: int) -> None:
    import numpy as np

    call.vectors[index] = vector
    call.prompt_tokens += tokens
    call.missing -= 1
    if not call.missing and not call.done.done():
        call.done.set_result(EmbeddingBatch(np.stack(call.vectors), call.prompt_tokens))


def _fail(call: Call, error: Exception) -> None:
    call.todo.clear()
    if not call.done.done():
        call.done.set_exception(error)
