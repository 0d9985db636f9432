"""Files that somebody sent, good and hostile, through the real child process."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import struct
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import JobFailed
from ops.bench.voice import wav
from workers import audio
from workers.audio import CHILD, AudioLimits, decode

LIMITS = AudioLimits(60.0)
TONE = (np.sin(np.arange(5 * audio.RATE) * 0.05) * 8000).astype(np.int16)


async def refusal(data: bytes, limits: AudioLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(JobFailed) as caught:
        await decode(data, limits)
    assert not caught.value.retryable
    return caught.value.code, caught.value.message


def runs(pid: Path) -> bool:
    return Path(f"/proc/{pid.read_text()}").exists()


def encoded(codec: str, container: str, *, video: bool = False, sound: bool = True, rate: int = 44_100) -> bytes:
    """Five seconds of the tone, encoded by PyAV."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate) if sound else None
        if video:
            picture = file.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            for _ in range(5):
                file.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
            file.mux(picture.encode(None))
        if sound:
            frame = av.AudioFrame.from_ndarray(TONE.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate, frame.time_base = audio.RATE, Fraction(1, audio.RATE)
            resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(stream.encode(piece))
            file.mux(stream.encode(None))
    return out.getvalue()


async def test_a_wav_of_whisper_s_own_rate_comes_out_as_it_went_in() -> None:
    assert np.array_equal(await decode(wav(TONE), LIMITS), TONE)


async def test_samples_are_those_that_faster_whisper_would_decode() -> None:
    from faster_whisper import decode_audio

    data = encoded("libmp3lame", "mp3")
    theirs = decode_audio(io.BytesIO(data))
    ours = (await decode(data, LIMITS)).astype(np.float32) / 32768
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libmp3lame", "mp3"), ("flac", "flac"), ("libopus", "ogg"), ("aac", "mp4"), ("libopus", "webm"), ("aac", "adts")],
)
async def test_the_formats_that_people_have_are_read(codec: str, container: str) -> None:
    samples = await decode(encoded(codec, container, rate=48_000), LIMITS)
    assert abs(len(samples) - len(TONE)) < 0.2 * audio.RATE


async def test_a_film_gives_its_sound_track() -> None:
    samples = await decode(encoded("aac", "mp4", video=True, rate=48_000), LIMITS)
    assert abs(len(samples) - len(TONE)) < 0.2 * audio.RATE


async def test_a_film_without_sound_is_refused_for_that() -> None:
    assert (await refusal(encoded("", "mp4", video=True, sound=False)))[0] == "no_audio"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Dear Sir or Madam,\n" * 500,
        os.urandom(50_000),
        wav(TONE)[:40],
        wav(TONE)[:44],
        b"\x1f\x8b" + bytes(5000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n",
    ],
)
async def test_what_is_no_audio_is_refused_in_words(data: bytes) -> None:
    code, message = await refusal(data)
    assert code == "audio_unreadable"
    assert message.startswith("the audio cannot be used: ")


async def test_a_file_that_breaks_off_gives_what_is_there() -> None:
    assert len(await decode(wav(TONE)[: 44 + 2 * audio.RATE], LIMITS)) == audio.RATE


async def test_length_is_counted_while_it_is_decoded_and_not_believed() -> None:
    code, message = await refusal(wav(np.tile(TONE, 20)), AudioLimits(10.0))
    assert (code, "longer than 10 s" in message) == ("audio_too_long", True)


async def test_a_small_file_that_decodes_to_hours_is_stopped_early() -> None:
    """Silence in FLAC: two hours in a few kilobytes."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="flac") as file:
        stream: Any = file.add_stream("flac", rate=8000, layout="mono")
        stream.codec_context.options = {"frame_size": "65535"}
        block = av.AudioFrame("s16", "mono", 4608)
        block.sample_rate = 8000
        for plane in block.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(12_500):
            block.pts = None
            file.mux(stream.encode(block))
        file.mux(stream.encode(None))
    assert len(out.getvalue()) < 400_000
    started = time.monotonic()
    assert (await refusal(out.getvalue(), AudioLimits(600.0)))[0] == "audio_too_long"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
async def test_a_forged_sample_rate_is_refused(rate: int) -> None:
    data = bytearray(wav(TONE))
    data[24:28] = struct.pack("<I", rate)
    assert (await refusal(bytes(data)))[0] == "audio_unreadable"


async def test_eight_channels_are_mixed_to_one() -> None:
    data = bytearray(wav(np.repeat(TONE, 8)))
    data[22:24], data[28:34] = struct.pack("<H", 8), struct.pack("<IH", 16 * audio.RATE, 16)
    assert abs(len(await decode(bytes(data), LIMITS)) - len(TONE)) < 100


async def test_a_file_cannot_make_the_child_open_another_file_or_a_connection(tmp_path: Path) -> None:
    """Playlists and lists of files, for which FFmpeg has readers, name a file and a listening socket."""
    other = tmp_path / "secret.wav"
    other.write_bytes(wav(TONE))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        for named in (f"file:{other}", str(other), f"http://127.0.0.1:{port}/a.wav", f"tcp://127.0.0.1:{port}"):
            for text in (
                f"ffconcat version 1.0\nfile '{named}'\n",
                f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{named}\n#EXT-X-ENDLIST\n",
                f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n",
                f"<MPD><Period><AdaptationSet><BaseURL>{named}</BaseURL></AdaptationSet></Period></MPD>",
            ):
                assert (await refusal(text.encode()))[0] == "audio_unreadable"
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_the_child_cannot_open_anything_once_it_is_bound() -> None:
    """Whatever FFmpeg's readers would do: the kernel has no file descriptor left for it."""
    import subprocess
    import sys

    code = (
        f"import sys; sys.path.insert(0, {str(CHILD.parent)!r})\nimport audio_child, socket\n"
        f"audio_child.Limits(**{json.loads(LIMITS.argument)!r}).bind()\n"
        "for attempt in (lambda: open('/etc/hostname'), socket.socket):\n"
        "    try:\n        attempt()\n    except OSError as error:\n        print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=True)
    assert done.stdout.split() == ["24", "24"]


async def test_a_child_that_hangs_is_killed_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    child = tmp_path / "child.py"
    child.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    monkeypatch.setattr(audio, "CHILD", child)
    code, _ = await refusal(wav(TONE), AudioLimits(60.0, start_s=1.0))
    assert code == "audio_timeout"
    assert not runs(pid)


async def test_a_child_that_dies_fails_its_job_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(audio, "CHILD", child)
    assert await refusal(wav(TONE)) == (
        "audio_unreadable",
        "the audio cannot be used: its decoder died of it (exit -11)",
    )


async def test_more_memory_than_allowed_ends_the_child() -> None:
    code, _ = await refusal(wav(TONE), AudioLimits(60.0, memory_bytes=1024 * 1024))
    assert code in ("audio_too_long", "audio_unreadable")


async def test_a_caller_that_is_cancelled_leaves_no_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = tmp_path / "child.py"
    child.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    monkeypatch.setattr(audio, "CHILD", child)
    decoding = asyncio.create_task(decode(wav(TONE), LIMITS))
    async with asyncio.timeout(10):
        while not pid.exists() or not pid.read_text():  # noqa: ASYNC110 - the child cannot tell us otherwise
            await asyncio.sleep(0.01)
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert not runs(pid)


async def test_files_are_decoded_on_uvloop_while_matrices_are_multiplied() -> None:
    """uvloop starts a process by a fork, whose OpenBLAS handler waits with the GIL held for threads that want it."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.unit.blas_and_files")
    try:
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
