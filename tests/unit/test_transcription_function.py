"""The job function around the fake engine; audio goes through the real decoder."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.blobs import Blobs
from common.catalogue import Model
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult, Priority, Work
from common.settings import Settings
from ops.bench.voice import wav
from tests.waiting import until
from workers import transcription as module
from workers.serving import on_shutdown
from workers.transcription import transcription

Events = list[tuple[str, dict[str, Any]]]


class Worker:
    """What a worker gives to its job function."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.settings = Settings(data_dir=folder, max_audio_s=600)
        model = Model("fake", "transcription", "fake", "", 448, 4, options={"chunk_s": 1, **options})
        self.ctx: dict[str, Any] = module.settings_for(model, self.settings)["ctx"]
        self.events: dict[str, Events] = {}
        self.stop_after: int | None = None
        self.ctx |= {"emit": self.emit, "emitted": self.emitted, "blobs": Blobs(self.settings)}

    async def emit(self, job: ClaimedJob, event: str, data: dict[str, Any]) -> None:
        events = self.events.setdefault(job.id, [])
        events.append((event, data))
        if len(self.segments(job.id)) == self.stop_after:
            raise InterruptedError

    async def emitted(self, job: ClaimedJob) -> list[dict[str, Any]]:
        return self.segments(job.id)

    def segments(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events.get(name, []) if event == "segment"]

    async def job(
        self, seconds: float, name: str = "job", claims: int = 1, lane: Priority = "normal", **params: Any
    ) -> ClaimedJob:
        data = wav(np.ones(int(seconds * 16_000), np.int16))
        return self.claimed(await self.stored(data), name, claims, lane, params)

    async def stored(self, data: bytes) -> str:
        reference: str = await self.ctx["blobs"].store_file(io.BytesIO(data), 60)
        return reference

    def claimed(self, audio: str, name: str, claims: int, lane: Priority, params: dict[str, Any]) -> ClaimedJob:
        raw = msgspec.json.encode(Work({"audio": audio}, params))
        return ClaimedJob(name, f"{name}:2p", claims, 0, 0, lane, "ann", 60.0, raw, "transcription", "fake")

    async def run(self, seconds: float, **about: Any) -> JobResult:
        return await transcription(self.ctx, await self.job(seconds, **about))


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    made = Worker(tmp_path)
    await module.on_startup(made.ctx)
    yield made
    await on_shutdown(made.ctx)


async def test_segments_come_as_events_and_are_the_result_put_together(worker: Worker) -> None:
    result = await worker.run(3.5)
    segments = worker.segments("job")
    assert result.output["text"] == "".join(one["text"] for one in segments)
    assert result.output["text"] == "alpha 0. bravo 1. charlie 2. delta 3."
    assert (result.output["language"], result.output["duration"], result.usage) == ("en", 3.5, {"audio_seconds": 4})
    assert [one["id"] for one in segments] == list(range(8))


async def test_progress_is_told_in_seconds_of_audio_after_each_chunk(worker: Worker) -> None:
    await worker.run(2.5)
    told = [data for event, data in worker.events["job"] if event == "progress"]
    assert told == [{"heard_s": heard, "of_s": 2.5} for heard in (1.0, 2.0, 2.5)]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 6])
async def test_a_job_delivered_again_goes_on_after_its_last_segment(worker: Worker, stop_after: int) -> None:
    whole = await worker.run(3.5, name="whole", response_format="verbose_json")
    worker.stop_after = stop_after
    with pytest.raises(InterruptedError):
        await worker.run(3.5, response_format="verbose_json")
    worker.stop_after = None
    heard_before = len(worker.ctx["engine"].interleaver.batches)
    result = await worker.run(3.5, claims=2, response_format="verbose_json")
    assert result == whole
    assert worker.segments("job") == worker.segments("whole")
    heard_again = [heard for batch in worker.ctx["engine"].interleaver.batches[heard_before:] for heard in batch]
    assert len(heard_again) == 4 - (stop_after - 1) // 2, "chunks before that of the last segment are not heard again"


async def test_parameters_of_a_job_win_over_those_of_the_catalogue(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.ctx["model"].defaults.update(language="de", response_format="srt")
    await module.on_startup(worker.ctx)
    assert "srt" in (await worker.run(1)).output
    output = (await worker.run(1, name="other", language="fr", response_format="json")).output
    assert (output["language"], "srt" in output) == ("fr", False)
    await on_shutdown(worker.ctx)


async def test_audio_that_is_gone_and_audio_that_is_none_fail_for_good(worker: Worker) -> None:
    gone = worker.claimed("@1/0000", "gone", 1, "normal", {})
    with pytest.raises(JobFailed, match="submit it again") as caught:
        await transcription(worker.ctx, gone)
    assert (caught.value.code, caught.value.retryable) == ("audio_gone", False)
    with pytest.raises(JobFailed) as caught:
        await transcription(worker.ctx, worker.claimed(await worker.stored(b"no audio"), "none", 1, "normal", {}))
    assert caught.value.code == "audio_unreadable"
    assert (await worker.run(1, name="after")).output["text"], "the worker goes on"


async def test_a_recording_beyond_max_audio_s_is_refused(worker: Worker) -> None:
    with pytest.raises(JobFailed) as caught:
        await worker.run(601)
    assert caught.value.code == "audio_too_long"


async def test_an_engine_that_dies_fails_its_jobs_for_a_retry_and_comes_back(tmp_path: Path) -> None:
    worker = Worker(tmp_path, delay_s=0.05, batch_size=1)
    await module.on_startup(worker.ctx)
    running = asyncio.create_task(worker.run(8))
    await until(lambda: bool(worker.segments("job")), "a segment")
    worker.ctx["engine"].die()
    with pytest.raises(JobFailed) as caught:
        await running
    assert (caught.value.code, caught.value.retryable) == ("engine_died", True)
    assert (await worker.run(8, claims=2)).output["text"].endswith(" 7.")
    assert [one["id"] for one in worker.segments("job")] == list(range(16))
    await on_shutdown(worker.ctx)


async def test_a_short_clip_of_the_high_lane_is_done_while_a_long_file_of_another_lane_is_heard(tmp_path: Path) -> None:
    worker = Worker(tmp_path, delay_s=0.1, batch_size=2)
    await module.on_startup(worker.ctx)
    long = asyncio.create_task(worker.run(40, name="long", lane="low"))
    await until(lambda: bool(worker.segments("long")), "a segment")
    await worker.run(2, name="clip", lane="high")
    assert not long.done()
    assert len(worker.segments("long")) < 60
    assert (await long).output["text"].endswith(" 39.")
    await on_shutdown(worker.ctx)


async def test_a_cancelled_job_takes_its_chunks_out_of_the_batches(tmp_path: Path) -> None:
    worker = Worker(tmp_path, delay_s=0.05, batch_size=1)
    await module.on_startup(worker.ctx)
    running = asyncio.create_task(worker.run(30))
    await until(lambda: bool(worker.segments("job")), "a segment")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    heard = len(worker.ctx["engine"].interleaver.batches)
    await worker.run(1, name="next")
    assert len(worker.ctx["engine"].interleaver.batches) <= heard + 1
    await on_shutdown(worker.ctx)
