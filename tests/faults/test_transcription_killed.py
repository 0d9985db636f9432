"""SIGKILL of a worker in the middle of a recording: another one goes on from the last segment, and none comes twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.states import State
from ops.bench.voice import THRESHOLD, voice, wav
from ops.bench.whisper_model import write_whisper
from tests.faults.callers import read_to_the_end
from tests.faults.formation import WEB, Formation
from tests.redis_server import RedisServer
from tests.waiting import until

CATALOGUE = f"""
[models.ears]
kind = "transcription"
engine = "faster-whisper"
weights = "./whisper"
slots = 2
[models.ears.options]
device = "cpu"
cpu_threads = 1
batch_size = 1
beam_size = 1
chunk_s = 2
max_new_tokens = 16
vad_threshold = {THRESHOLD}
"""
RECORDING = wav(np.tile(voice(20), 2))


@pytest.fixture
async def listening(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Formation]:
    """Web, scheduler and two workers with a real Whisper of random weights."""
    write_whisper(tmp_path / "whisper")
    catalogue = tmp_path / "ears.toml"
    catalogue.write_text(CATALOGUE)
    formation = Formation(own_redis, tmp_path, catalogue=catalogue)
    await formation.open()
    for _ in range(2):
        formation.start("workers", "transcription")
    formation.start(*WEB)
    await formation.scheduler()
    await formation.workers("transcription:ears", 2)
    yield formation
    await formation.close()


async def submit(formation: Formation, client: Any) -> str:
    job = {"kind": "transcription", "model": "ears", "params": {"language": "en", "response_format": "verbose_json"}}
    files = {"job": (None, json.dumps(job)), "file": ("recording.wav", RECORDING)}
    response = await client.post("/v1/jobs", files=files)
    assert response.status_code == 202, response.text
    accepted: str = response.json()["id"]
    return accepted


async def test_a_recording_goes_on_elsewhere_and_each_of_its_segments_comes_once(listening: Formation) -> None:
    async with listening.client() as client:
        await listening.web_answers(client)
        job = await submit(listening, client)
        reading = asyncio.create_task(read_to_the_end(client, job))

        async def some_are_heard() -> bool:
            return len(await listening.results.emitted(job)) >= 5

        await until(some_are_heard, f"five segments\n{listening.logs()}", step_s=0.02)
        holder = (await listening.results.record(job)).worker
        assert holder is not None
        (victim,) = [kept for kept in listening.kept if kept.alive and f"-{kept.pid}-" in holder]
        victim.again = False
        victim.kill()
        (record,) = await listening.ends([job])
        seen = await asyncio.wait_for(reading, 30)
        output = (await client.get(f"/v1/jobs/{job}/result")).json()["output"]
        (whole,) = await listening.ends([again := await submit(listening, client)])
        uninterrupted = (await client.get(f"/v1/jobs/{again}/result")).json()["output"]
    assert (record.status, record.claims, whole.claims) == (State.COMPLETED, 2, 1)
    segments = [event.data for event in seen if event.event == "segment"]
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert len(segments) >= 15
    assert output["text"] == "".join(segment["text"] for segment in segments)
    assert output == uninterrupted
    # What was heard before the death was not heard again: progress never goes back.
    heard = [event.data["heard_s"] for event in seen if event.event == "progress"]
    assert heard == sorted(heard)
    assert heard[-1] <= output["duration"]
