"""faster-whisper with a random tiny model: what it hears means nothing, but it is what faster-whisper itself hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common.errors import EngineDead, JobFailed
from common.languages import LANGUAGES
from common.model import Model
from ops.bench.voice import RATE, THRESHOLD, voice
from ops.bench.whisper_model import write_whisper
from workers.engines.faster_whisper_engine import FasterWhisperEngine
from workers.engines.protocol import Heard, TranscriptionRequest

NEW_TOKENS = 12
SPOKEN = voice(70)
CLIP = voice(5, seed=7)
LONG = np.tile(SPOKEN, 3)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def whisper(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FasterWhisperEngine]:
    """A multilingual Whisper of random weights, loaded once."""
    folder = write_whisper(tmp_path_factory.mktemp("whisper"))
    options = {
        "device": "cpu",
        "compute_type": "float32",
        "cpu_threads": 1,
        "batch_size": 2,
        "max_new_tokens": NEW_TOKENS,
        "vad_threshold": THRESHOLD,
    }
    engine = FasterWhisperEngine(Model("w", "transcription", "faster-whisper", str(folder), 448, 16, options=options))
    await engine.start()
    yield engine
    await engine.stop()


async def heard(engine: FasterWhisperEngine, samples: Any = SPOKEN, **asked: Any) -> list[Heard]:
    async with aclosing(engine.transcribe(TranscriptionRequest(samples=samples, **asked))) as chunks:
        return [chunk async for chunk in chunks]


def text(chunks: list[Heard]) -> str:
    return "".join(segment.text for chunk in chunks for segment in chunk.segments)


def direct(engine: FasterWhisperEngine, samples: Any, **asked: Any) -> tuple[list[Any], Any]:
    """The same by faster-whisper's own batched pipeline."""
    from faster_whisper import BatchedInferencePipeline

    segments, about = BatchedInferencePipeline(engine._whisper).transcribe(
        samples.astype(np.float32) / 32768,
        batch_size=2,
        max_new_tokens=2 * NEW_TOKENS - 3,  # it counts the prompt's three tokens in, and CTranslate2 halves the sum
        vad_parameters={"threshold": THRESHOLD, "min_silence_duration_ms": 160},
        **asked,
    )
    return list(segments), about


async def test_the_languages_at_the_edge_are_those_of_faster_whisper() -> None:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    assert sorted(LANGUAGES) == sorted(_LANGUAGE_CODES)


async def test_what_is_heard_is_what_the_batched_pipeline_hears(whisper: FasterWhisperEngine) -> None:
    chunks = await heard(whisper)
    theirs, about = direct(whisper, SPOKEN)
    assert len(chunks) >= 3
    assert text(chunks) == "".join(segment.text for segment in theirs)
    assert {chunk.language for chunk in chunks} == {about.language}
    ours = [segment for chunk in chunks for segment in chunk.segments]
    assert ours[0].start == theirs[0].start
    assert ours[0].avg_logprob == pytest.approx(theirs[0].avg_logprob, abs=1e-3)
    assert all(segment.end <= len(SPOKEN) / RATE for segment in ours)


async def test_a_language_and_a_prompt_change_what_is_heard_and_both_as_the_pipeline_does(
    whisper: FasterWhisperEngine,
) -> None:
    plain = text(await heard(whisper, CLIP, language="en"))
    german = await heard(whisper, CLIP, language="de")
    prompted = text(await heard(whisper, CLIP, language="en", prompt="names"))
    translated = text(await heard(whisper, CLIP, language="de", task="translate"))
    assert {chunk.language for chunk in german} == {"de"}
    assert len({plain, text(german), prompted, translated}) == 4
    theirs, _ = direct(whisper, CLIP, language="de", task="translate")
    assert translated == "".join(segment.text for segment in theirs)


async def test_chunks_come_one_by_one_and_in_order(whisper: FasterWhisperEngine) -> None:
    request = TranscriptionRequest(samples=SPOKEN, language="en")
    seeks = []
    async with aclosing(whisper.transcribe(request)) as chunks:
        async for chunk in chunks:
            seeks.append(chunk.seek)
    assert seeks == sorted(set(seeks))
    assert len(seeks) >= 3


async def test_time_stamps_cut_chunks_into_segments_and_lose_no_words(whisper: FasterWhisperEngine) -> None:
    (chunk, *_) = await heard(whisper, CLIP, language="en", timestamps=True)
    assert all(0 <= one.start <= one.end <= len(CLIP) / RATE for one in chunk.segments)
    tokens = [token for one in chunk.segments for token in one.tokens]
    assert len(chunk.segments) > 1
    assert text([chunk]) == whisper._whisper.hf_tokenizer.decode(tokens)


async def test_words_have_times_within_the_recording_and_make_up_the_text(whisper: FasterWhisperEngine) -> None:
    for chunk in await heard(whisper, words=True):
        for segment in chunk.segments:
            assert segment.words
            assert "".join(word.word for word in segment.words).strip() == segment.text.strip()
            assert all(0 <= word.start <= word.end <= len(SPOKEN) / RATE for word in segment.words)
            assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)


async def test_a_recording_goes_on_from_the_chunk_that_is_named(whisper: FasterWhisperEngine) -> None:
    whole = await heard(whisper, language="en")
    rest = await heard(whisper, language="en", from_seek=whole[1].seek)
    assert [chunk.seek for chunk in rest] == [chunk.seek for chunk in whole[1:]]
    assert text(rest) == text(whole[1:])


async def test_silence_is_heard_as_nothing_with_voice_detection_only(whisper: FasterWhisperEngine) -> None:
    silence = np.zeros(4 * RATE, np.int16)
    assert await heard(whisper, silence) == []
    assert len(await heard(whisper, silence, vad=False)) == 1


async def test_batches_mix_recordings_and_each_gets_its_own_text(whisper: FasterWhisperEngine) -> None:
    other = SPOKEN[10 * RATE :]
    alone = [text(await heard(whisper, sound, language="en")) for sound in (SPOKEN, other)]
    whisper.interleaver.batches.clear()
    mixed: list[Any] = []
    for _ in range(5):  # on a busy machine one may be through before the other is there
        both = await asyncio.gather(heard(whisper, SPOKEN, language="en"), heard(whisper, other, language="en"))
        assert [text(chunks) for chunks in both] == alone
        mixed += [batch for batch in whisper.interleaver.batches if len({id(piece.request) for piece in batch}) > 1]
        if mixed:
            break
    assert mixed


async def test_recordings_in_different_languages_share_a_batch(whisper: FasterWhisperEngine) -> None:
    alone = [text(await heard(whisper, SPOKEN, language=code)) for code in ("en", "de")]
    whisper.interleaver.batches.clear()
    async with asyncio.timeout(60):  # on a busy machine one of them may be through before the other is cut
        while not any(len({piece.language for piece in batch}) > 1 for batch in whisper.interleaver.batches):
            both = await asyncio.gather(*(heard(whisper, SPOKEN, language=code) for code in ("en", "de")))
            assert [text(chunks) for chunks in both] == alone


async def test_a_clip_of_the_high_lane_is_heard_beside_a_long_recording(whisper: FasterWhisperEngine) -> None:
    started = asyncio.Event()

    async def long() -> list[Heard]:
        chunks = []
        async with aclosing(whisper.transcribe(TranscriptionRequest(samples=LONG, lane="low"))) as coming:
            async for chunk in coming:
                chunks.append(chunk)
                started.set()
        return chunks

    running = asyncio.create_task(long())
    async with asyncio.timeout(60):
        await started.wait()
    assert await heard(whisper, CLIP, lane="high")
    assert not running.done()
    assert len(await running) >= 7


async def test_a_caller_that_leaves_takes_its_chunks_with_it(whisper: FasterWhisperEngine) -> None:
    whisper.interleaver.batches.clear()
    request = TranscriptionRequest(samples=LONG)
    async with aclosing(whisper.transcribe(request)) as chunks:
        async for _ in chunks:
            break
    await heard(whisper, CLIP)
    assert sum(piece.request is request for batch in whisper.interleaver.batches for piece in batch) <= 7


@pytest.mark.parametrize(
    ("asked", "code"), [({"language": "klingon"}, "unknown_language")], ids=["a language that Whisper has not"]
)
async def test_what_the_model_cannot_do_is_refused_in_words(
    whisper: FasterWhisperEngine, asked: dict[str, Any], code: str
) -> None:
    with pytest.raises(JobFailed) as caught:
        await heard(whisper, CLIP, **asked)
    assert caught.value.code == code


async def test_a_stopped_engine_says_so_and_starts_again(whisper: FasterWhisperEngine) -> None:
    engine = FasterWhisperEngine(whisper.model)
    with pytest.raises(EngineDead):
        await heard(engine, CLIP)
    await engine.restart()
    assert text(await heard(engine, CLIP)) == text(await heard(whisper, CLIP))
    await engine.stop()
    with pytest.raises(EngineDead):
        await heard(engine, CLIP)
