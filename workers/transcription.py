"""The job function of `transcription`: a recording to its text, segment by segment while it is heard.

What a delivery has emitted is a commitment. A job that is delivered again goes on with the chunk of its last segment,
so that the texts of all its segment events, put together, are always the text of its result.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.cost import priced
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult
from common.settings import Settings
from workers import audio
from workers.engines import transcription_engine
from workers.engines.protocol import TranscriptionRequest
from workers.serving import revived, starter, worker_settings
from workers.transcript import Transcript

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Files decoded at once; a child takes a core while it decodes.
DECODERS = 4


async def transcription(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
    """Run one transcription job: stream its segments as events, return its text."""
    spec = job.spec
    params = {**ctx["model"].defaults, **spec.params}
    emitted = await ctx["emitted"](job) if job.claims > 1 else []
    samples = await _samples(ctx, spec.input)
    transcript = Transcript(params, emitted, len(samples) / audio.RATE)
    async with revived(ctx):
        await _run(ctx, job, transcript, _request(samples, job, params, transcript))
    return priced(ctx["model"].cost, transcript.result())


async def _samples(ctx: dict[str, Any], asked: dict[str, Any]) -> NDArray[np.int16]:
    try:
        data = await ctx["blobs"].load(str(asked["audio"]).encode())
    except FileNotFoundError:
        raise JobFailed("audio_gone", "the audio is not kept any more: submit it again") from None
    async with ctx["decoders"]:
        return await audio.decode(data, audio.AudioLimits(ctx["settings"].max_audio_s))


async def _run(ctx: dict[str, Any], job: ClaimedJob, transcript: Transcript, request: TranscriptionRequest) -> None:
    emit, of_s = ctx["emit"], round(transcript.length_s, 2)
    # aclosing: whatever ends this block (a cancel, a failed emit) takes the other chunks out of the batches to come.
    async with aclosing(ctx["engine"].transcribe(request)) as chunks:
        async for heard in chunks:
            for segment in transcript.take(heard):
                await emit(job, "segment", segment)
            await emit(job, "progress", {"heard_s": round(heard.end_s, 2), "of_s": of_s})


def _request(
    samples: NDArray[np.int16], job: ClaimedJob, params: dict[str, Any], transcript: Transcript
) -> TranscriptionRequest:
    return TranscriptionRequest(
        samples=samples,
        lane=job.lane,
        language=transcript.language,
        task=params.get("task") or "transcribe",
        prompt=params.get("prompt"),
        temperature=transcript.temperature,
        vad=params.get("vad", True),
        timestamps=transcript.timestamps,
        words=transcript.words,
        from_seek=transcript.from_seek,
    )


_load = starter("transcription", lambda model, settings: transcription_engine(model))


async def on_startup(ctx: dict[str, Any]) -> None:
    """Load the engine."""
    await _load(ctx)
    ctx["decoders"] = asyncio.Semaphore(DECODERS)


def settings_for(model: Model, settings: Settings) -> dict[str, Any]:
    """The worker's settings for one model, by keyword."""
    return worker_settings(transcription, on_startup, model, settings)
