"""Fake engines: deterministic, instant or slow on purpose, for tests of everything around an engine.

They run only where a catalogue entry says `engine = "fake"`. Token n of an answer depends on the prompt, the seed and n
alone, so an answer that is interrupted and resumed is the same as one that was not. A `choice` is answered with one of
the choices, and each token has a log probability of -1; any other structure is refused.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from workers.engines.interleave import Interleaver
from workers.engines.protocol import (
    Cut,
    EmbeddingBatch,
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    Heard,
    Segment,
    TranscriptionRequest,
    Word,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]


class _FakeEngine:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.delay_s = float(model.options.get("delay_s", 0))
        self.starts = 0
        self._alive = False

    async def start(self) -> None:
        """Become alive, after `start_s`."""
        await asyncio.sleep(self.model.options.get("start_s", 0))
        self.starts += 1
        self._alive = True

    async def stop(self) -> None:
        """Stop serving."""
        self._alive = False

    async def restart(self) -> None:
        """Start again if dead."""
        if not self._alive:
            await self.start()

    @property
    def alive(self) -> bool:
        """Whether it was started and not killed."""
        return self._alive

    def die(self) -> None:
        """Die as an engine process does: every request in flight gets EngineDead at its next step."""
        self._alive = False

    async def _pause(self) -> None:
        starts = self.starts
        await asyncio.sleep(self.delay_s)
        if not self._alive or self.starts != starts:
            raise EngineDead("the fake engine died")


class FakeGenerationEngine(_FakeEngine):
    """Answers with made-up words: `tokens` of them (16), one every `delay_s`."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.words: list[str] = model.options.get("words", WORDS)
        self.tokens: int = model.options.get("tokens", 16)
        self.running: set[str] = set()

    async def generate(self, request_id: str, request: GenerationRequest) -> AsyncGenerator[GenerationDelta]:
        """One word a step, until `tokens`, `max_tokens` or the context's end."""
        prompt = self._prompt(request)
        prompt_tokens = max(1, len(prompt.split()))
        room = self.model.max_model_len - prompt_tokens
        if room < 1:
            raise JobFailed("prompt_too_long", f"the prompt has {prompt_tokens} tokens, the model {room}")
        chosen = _chosen(request, prompt)
        length = self.tokens if chosen is None else len(chosen)
        end = min(length, request.max_tokens, room)
        reason: FinishReason = "stop" if end == length else "length"
        words = chosen or [self._text(prompt, n) for n in range(end)]
        done = len(request.resume_ids) or len(request.resume_text.split())
        self.running.add(request_id)
        try:
            await self._pause_at_start()
            if done:
                text = "".join(words[:done])
                yield GenerationDelta(text, [], reason if done >= end else None, prompt_tokens)
            for n in range(done, end):
                await self._pause()
                finish = reason if n == end - 1 else None
                ids = [self._id(prompt, n)]
                yield GenerationDelta(words[n], ids, finish, prompt_tokens, logprobs=_logprobs(request, words[n]))
        finally:
            self.running.discard(request_id)

    async def _pause_at_start(self) -> None:
        if not self._alive:
            raise EngineDead("the fake engine is dead")

    def _prompt(self, request: GenerationRequest) -> str:
        asked = request.prompt or "\n".join(str(one.get("content") or "") for one in request.messages or [])
        asked += str(request.sampling.get("seed", ""))
        return f"{request.adapter} {asked}" if request.adapter else asked

    def _id(self, prompt: str, n: int) -> int:
        return (zlib.crc32(prompt.encode()) + n) % len(self.words)

    def _text(self, prompt: str, n: int) -> str:
        return self.words[self._id(prompt, n)] + " "


def _chosen(request: GenerationRequest, prompt: str) -> str | None:
    """The choice that is the answer, a token a character; raises JobFailed for a structure that is none of ours."""
    if request.structured is None:
        return None
    if "choice" not in request.structured:
        raise JobFailed("invalid_request", f"the fake engine has no {', '.join(request.structured)}, only choice")
    choices: list[str] = request.structured["choice"]
    return choices[zlib.crc32(prompt.encode()) % len(choices)]


def _logprobs(request: GenerationRequest, word: str) -> list[dict[str, Any]] | None:
    if request.logprobs is None:
        return None
    told = {"token": word, "logprob": -1.0, "bytes": list(word.encode())}
    return [{**told, "top_logprobs": [told] * min(1, request.logprobs)}]


class FakeEmbeddingEngine(_FakeEngine):
    """Answers with a made-up unit vector of `dimensions` (8) for each text, after `delay_s`."""

    async def embed(self, texts: list[str], truncate: bool = True, low: bool = False) -> EmbeddingBatch:
        """The same text always has the same vector; a word is a token."""
        import numpy as np

        if not self._alive:
            raise EngineDead("the fake engine is dead")
        words = [max(1, len(text.split())) for text in texts]
        limit = self.model.max_model_len
        cut = [Cut(index, count) for index, count in enumerate(words) if count > limit]
        if cut and not truncate:
            reason = f"texts[{cut[0].index}] has {cut[0].tokens} tokens, the model takes {limit}"
            raise JobFailed("text_too_long", reason)
        await self._pause()
        vectors = np.stack([self._vector(text) for text in texts])
        return EmbeddingBatch(vectors, sum(min(count, limit) for count in words), cut)

    def _vector(self, text: str) -> NDArray[np.float32]:
        import numpy as np

        random = np.random.default_rng(zlib.crc32(text.encode()))
        vector = random.standard_normal(self.model.options.get("dimensions", 8)).astype(np.float32)
        unit: NDArray[np.float32] = vector / np.float32(np.linalg.norm(vector))
        return unit


class FakeTranscriptionEngine(_FakeEngine):
    """Hears made-up words: two in every `chunk_s` (30), `batch_size` (8) chunks every `delay_s`."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.chunk_s = float(model.options.get("chunk_s", 30))
        self.interleaver = Interleaver(self._hear, model.options.get("batch_size", 8))
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Become alive, after `start_s`."""
        await super().start()
        self._work = asyncio.create_task(self.interleaver.work())

    async def stop(self) -> None:
        """Stop serving."""
        await super().stop()
        if self._work is not None:
            self._work.cancel()
            with suppress(asyncio.CancelledError):
                await self._work
            self._work = None

    async def restart(self) -> None:
        """Start again if dead."""
        if not self._alive:
            await self.stop()
            await self.start()

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Heard]:
        """Chunk n of a recording depends on its length and n alone."""
        if not self._alive:
            raise EngineDead("the fake engine is dead")
        line = self.interleaver.open(request.lane)
        try:
            cut = self._cut(len(request.samples) / 16_000, request)
            for future in [self.interleaver.put(line, heard, None) for heard in cut if heard.seek >= request.from_seek]:
                yield await future
        finally:
            self.interleaver.close(line)

    def _cut(self, length_s: float, request: TranscriptionRequest) -> list[Heard]:
        count = max(1, -int(-length_s // self.chunk_s))
        return [self._chunk(n, length_s, request) for n in range(count)]

    def _chunk(self, n: int, length_s: float, request: TranscriptionRequest) -> Heard:
        start, end = n * self.chunk_s, min((n + 1) * self.chunk_s, length_s)
        middle = (start + end) / 2
        spoken = [(start, middle, f" {WORDS[n % len(WORDS)]}"), (middle, end, f" {n}.")]
        segments = [
            Segment(low, high, text, [n], -0.5, 1.0, 0.1, [Word(text, low, high, 0.9)] if request.words else None)
            for low, high, text in spoken
        ]
        return Heard(round(start * 100), end, request.language or "en", segments)

    async def _hear(self, works: list[Heard]) -> Sequence[Heard]:
        await self._pause()
        return works
