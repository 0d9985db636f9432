"""Calls of an embedding engine: what each still waits for, and how it is told that it is done."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.engines.protocol import Cut, EmbeddingBatch
from workers.engines.text import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: Those that are done are told so at most so much later than they might be.
LATER_S = 0.1


@dataclass(eq=False, slots=True)
class Call:
    """One `embed`: its texts still to do (longest last, so that they pop from the end) and the vectors so far."""

    texts: list[Text]
    done: asyncio.Future[EmbeddingBatch]
    vectors: Vectors
    low: bool = False  # whether it lets others go first
    came: float = field(default_factory=time.monotonic)
    todo: list[int] = field(default_factory=list)
    waiting: int = 0  # tokens still to do
    missing: int = 0

    def __post_init__(self) -> None:
        self.todo = sorted(range(len(self.texts)), key=lambda index: len(self.texts[index].ids))
        self.waiting = sum(len(text.ids) for text in self.texts)
        self.missing = len(self.texts)

    def pop(self) -> int:
        """Take the longest text that is left into a batch."""
        index = self.todo.pop()
        self.waiting -= len(self.texts[index].ids)
        return index

    def add(self, index: int, vector: Vectors) -> None:
        """A text's vector; the call is done with the last one."""
        self.vectors[index] = vector
        self.missing -= 1
        if not self.missing and not self.done.done():
            cut = [Cut(i, text.tokens) for i, text in enumerate(self.texts) if text.tokens > len(text.ids)]
            self.done.set_result(EmbeddingBatch(self.vectors, sum(len(text.ids) for text in self.texts), cut))

    def fail(self, error: Exception) -> None:
        """End it without vectors."""
        self.todo.clear()
        if not self.done.done():
            self.done.set_exception(error)


Piece = tuple[Call, int]  # a call and the index of one of its texts


class Done:
    """Vectors that are computed, and not yet their calls'.

    Many calls that are told together cost less than each by itself: what follows, their jobs' ends in Redis and their
    readers' answers, goes together too, and takes less from the cores that the model runs on.
    """

    def __init__(self) -> None:
        self._vectors: list[tuple[Piece, Vectors]] = []
        self._alarm: asyncio.TimerHandle | None = None

    def add(self, vectors: list[tuple[Piece, Vectors]], later: bool) -> None:
        """Tell whose they are, at once or within `LATER_S`; at once means all that were kept so far too."""
        self._vectors += vectors
        if not later:
            self.tell()
        elif self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(LATER_S, self.tell)

    def tell(self) -> None:
        """Give them all to their calls."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        vectors, self._vectors = self._vectors, []
        for (call, index), vector in vectors:
            call.add(index, vector)
