"""faster-whisper (CTranslate2) with batches made of whatever waits: chunks of many recordings, high lane first.

Feature extraction, decoding and alignment are faster-whisper's, with the settings of its batched pipeline. What is
different is where a batch comes from (`interleave.py`), and that time stamps cut a chunk into segments without losing
the words behind the last one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from workers.engines.interleave import Interleaver, Line
from workers.engines.protocol import Heard, Segment, TranscriptionRequest, Word
from workers.engines.speech import Chunk, chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("jarvis.engines")

BATCH_SIZE = 8  # faster-whisper's own default
BEAM_SIZE = 5  # Whisper's, and faster-whisper's
CHUNK_S = 30  # what Whisper hears at once
MOST_NEW_TOKENS = 224  # half of Whisper's positions
TOKEN_S = 0.02  # of a time stamp
MIN_SILENCE_MS = 160  # faster-whisper's batched default; its VadOptions have 2,000
#: A batch and an express one at a time, and so many recordings searched for speech.
HEARING, CUTTING = 2, 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk to be heard, and how. `language` is None for the first chunk of a recording that does not say."""

    request: TranscriptionRequest
    chunk: Chunk
    language: str | None
    prompt: list[int]


class FasterWhisperEngine:
    """One Whisper model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        options = model.options
        self.chunk_s: float = options.get("chunk_s", CHUNK_S)
        self.interleaver = Interleaver(self._hear, options.get("batch_size", BATCH_SIZE))
        self._whisper: Any = None
        self._suppressed: Sequence[int] = ()
        self._hearing: ThreadPoolExecutor | None = None
        self._cutting: ThreadPoolExecutor | None = None
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model."""
        self._hearing = ThreadPoolExecutor(HEARING, thread_name_prefix="transcription")
        self._cutting = ThreadPoolExecutor(CUTTING, thread_name_prefix="speech")
        await asyncio.get_running_loop().run_in_executor(self._hearing, self._load)
        self._work = asyncio.create_task(self.interleaver.work())

    async def stop(self) -> None:
        """End after the batches in progress; who still waits gets EngineDead."""
        if self._work is not None:
            self._work.cancel()
            with suppress(asyncio.CancelledError):
                await self._work
        for pool in (self._hearing, self._cutting):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._whisper = self._hearing = self._cutting = self._work = None

    async def restart(self) -> None:
        """Load the model again if it is gone."""
        if not self.alive:
            await self.stop()
            await self.start()

    @property
    def alive(self) -> bool:
        """Whether it works."""
        return self._work is not None and not self._work.done()

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Heard]:
        """What is said, chunk by chunk; a caller that leaves takes its chunks out of the batches to come."""
        if not self.alive:
            raise EngineDead("the transcription engine is not running")
        self._check(request)
        line = self.interleaver.open(request.lane)
        coming: asyncio.Queue[asyncio.Future[Heard] | None] = asyncio.Queue()
        feeding = asyncio.create_task(self._feed(line, request, coming))
        try:
            while (future := await coming.get()) is not None:
                yield await future
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            self.interleaver.close(line)

    def _check(self, request: TranscriptionRequest) -> None:
        known = self._whisper.supported_languages
        if request.language is not None and request.language not in known:
            raise JobFailed("unknown_language", f"this model knows {', '.join(known)}, not {request.language}")
        if request.task == "translate" and not self._whisper.model.is_multilingual:
            raise JobFailed("cannot_translate", "this model knows English only: there is nothing to translate")

    async def _feed(
        self, line: Line, request: TranscriptionRequest, coming: asyncio.Queue[asyncio.Future[Heard] | None]
    ) -> None:
        """Cut the recording and put its chunks in line; the others wait until the first has told the language."""
        prompt = (
            self._whisper.hf_tokenizer.encode(request.prompt, add_special_tokens=False).ids if request.prompt else []
        )
        language = request.language
        try:
            async with aclosing(self._chunks(request)) as cut:
                async for together in cut:
                    for chunk in together:  # all in one go: they can share their first batch
                        piece = Piece(request, chunk, language, prompt)
                        future = self.interleaver.put(line, piece, self._key(piece))
                        coming.put_nowait(future)
                        if language is None:
                            await asyncio.wait([future])
                            language = future.result().language
        finally:
            coming.put_nowait(None)

    async def _chunks(self, request: TranscriptionRequest) -> AsyncGenerator[list[Chunk]]:
        loop = asyncio.get_running_loop()
        found = chunks(request.samples, self.chunk_s, self._vad() if request.vad else None)
        while (together := await loop.run_in_executor(self._cutting, next, found, None)) is not None:
            yield [chunk for chunk in together if chunk.seek >= request.from_seek]

    def _vad(self) -> Any:
        from faster_whisper.vad import VadOptions

        options = self.model.options
        return VadOptions(
            threshold=options.get("vad_threshold", 0.5),
            min_silence_duration_ms=options.get("vad_min_silence_ms", MIN_SILENCE_MS),
            speech_pad_ms=options.get("vad_speech_pad_ms", 400),
            max_speech_duration_s=self.chunk_s,
        )

    def _key(self, piece: Piece) -> Hashable:
        """Pieces with the same key share a batch: one length of prompt, one way to search, one language to align."""
        request = piece.request
        spoken: Hashable = (piece.language or id(request), request.task) if request.words else None
        return len(piece.prompt), request.temperature, request.timestamps, spoken

    # -- in threads

    def _load(self) -> None:
        if self.model.local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from faster_whisper import WhisperModel
        from faster_whisper.transcribe import get_suppressed_tokens
        from faster_whisper.vad import get_vad_model

        options = self.model.options
        self._whisper = WhisperModel(
            self.model.weights_path(),
            device=options.get("device", "auto"),
            device_index=options.get("device_index", 0),
            compute_type=options.get("compute_type", "default"),
            cpu_threads=options.get("cpu_threads", 0),
            num_workers=HEARING,
            local_files_only=self.model.local,
            revision=self.model.revision,
        )
        get_vad_model()
        self._suppressed = get_suppressed_tokens(self._tokenizer("en", "transcribe"), [-1])

    def _tokenizer(self, language: str, task: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._whisper.hf_tokenizer, self._whisper.model.is_multilingual, task=task, language=language)

    async def _hear(self, pieces: list[Piece]) -> Sequence[Heard]:
        return await asyncio.get_running_loop().run_in_executor(self._hearing, self._hear_here, pieces)

    def _hear_here(self, pieces: list[Piece]) -> list[Heard]:
        encoded = self._whisper.encode(self._features(pieces))
        languages = self._languages(pieces, encoded)
        tokenizers = [self._tokenizer(code, piece.request.task) for piece, code in zip(pieces, languages, strict=True)]
        results = self._generate(pieces, tokenizers, encoded)
        cut = [
            self._split(piece, tokenizer, result.sequences_ids[0])
            for piece, tokenizer, result in zip(pieces, tokenizers, results, strict=True)
        ]
        if pieces[0].request.words:
            # It finds the words and moves the segments' ends to them, in place.
            frames = [int(piece.chunk.duration_s + 1) * self._whisper.frames_per_second for piece in pieces]
            self._whisper.add_word_timestamps(
                cut, tokenizers[0], encoded, frames, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、", 0.0
            )
        return [
            Heard(piece.chunk.seek, piece.chunk.end_s, code, list(_segments(piece, tokenizer, parts, result)))
            for piece, code, tokenizer, parts, result in zip(pieces, languages, tokenizers, cut, results, strict=True)
        ]

    def _features(self, pieces: list[Piece]) -> NDArray[np.float32]:
        import numpy as np
        from faster_whisper.audio import pad_or_trim

        extract = self._whisper.feature_extractor
        sounds = [piece.chunk.cut_from(piece.request.samples) for piece in pieces]
        return np.stack([pad_or_trim(extract(sound)[..., :-1]) for sound in sounds])

    def _languages(self, pieces: list[Piece], encoded: Any) -> list[str]:
        if not self._whisper.model.is_multilingual:
            return ["en"] * len(pieces)
        if all(piece.language for piece in pieces):
            return [str(piece.language) for piece in pieces]
        likeliest = [found[0][0][2:-2] for found in self._whisper.model.detect_language(encoded)]
        return [piece.language or heard for piece, heard in zip(pieces, likeliest, strict=True)]

    def _generate(self, pieces: list[Piece], tokenizers: list[Any], encoded: Any) -> Any:
        request = pieces[0].request
        prompts = [
            self._whisper.get_prompt(tokenizer, piece.prompt, without_timestamps=not request.timestamps)
            for piece, tokenizer in zip(pieces, tokenizers, strict=True)
        ]
        new, limit = self.model.options.get("max_new_tokens", MOST_NEW_TOKENS), self._whisper.max_length
        if request.temperature > 0:
            search = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": request.temperature}
        else:
            search = {"beam_size": self.model.options.get("beam_size", BEAM_SIZE)}
        return self._whisper.model.generate(
            encoded,
            prompts,
            # CTranslate2 makes half as many tokens at most, and no more than there is room for behind the prompt.
            max_length=min(limit, max(2 * new, len(prompts[0]) + new)),
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )

    def _split(self, piece: Piece, tokenizer: Any, tokens: list[int]) -> list[dict[str, Any]]:
        parts = split(tokens, tokenizer.timestamp_begin, piece.chunk.duration_s)
        # Alignment wants a part in every chunk.
        parts = parts or [(0.0, piece.chunk.duration_s, [])]
        return [{"start": start, "end": end, "tokens": own, "seek": 0} for start, end, own in parts]


def split(tokens: list[int], first_stamp: int, duration_s: float) -> list[tuple[float, float, list[int]]]:
    """Tokens cut at their time stamps: (start, end, text tokens), in seconds of their chunk."""
    parts: list[tuple[float, float, list[int]]] = []
    start, held = 0.0, list[int]()
    for token in tokens:
        if token < first_stamp:
            held.append(token)
            continue
        at = min((token - first_stamp) * TOKEN_S, duration_s)
        if held:
            parts.append((start, max(start, at), held))
            held = []
        start = max(start, at)
    if held:
        parts.append((start, duration_s, held))
    return parts


def _segments(piece: Piece, tokenizer: Any, parts: list[dict[str, Any]], result: Any) -> Iterator[Segment]:
    from faster_whisper.transcribe import get_compression_ratio

    length = len(result.sequences_ids[0])
    for part in parts:
        text = tokenizer.decode(part["tokens"])
        if not text.strip():
            continue
        start, end = piece.chunk.in_recording(part["start"], part["end"])
        words = [_word(piece.chunk, word) for word in part.get("words", ())] if piece.request.words else None
        if words:
            start, end = words[0].start, words[-1].end
        yield Segment(
            start,
            end,
            text,
            part["tokens"],
            # CTranslate2 gives the mean over the tokens, Whisper's own counts the end as one more.
            avg_logprob=round(result.scores[0] * length / (length + 1), 4),
            compression_ratio=round(get_compression_ratio(text), 4),
            no_speech_prob=round(result.no_speech_prob, 4),
            words=words,
        )


def _word(chunk: Chunk, found: dict[str, Any]) -> Word:
    start, end = chunk.word_in_recording(float(found["start"]), float(found["end"]))
    return Word(found["word"], start, end, round(float(found["probability"]), 4))
