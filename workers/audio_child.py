"""The child that decodes a file somebody sent: `audio_child.py LIMITS`, the file on stdin, its samples on stdout.

Whatever is in the file, this process is all it can harm, and that not for long: memory and CPU time are bounded, no
file or socket can be opened any more, and only formats that hold sound by themselves are read, none that name other
files (playlists, ffconcat). It imports nothing of ours and no NumPy: it starts with every file.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Generator, Iterator
from typing import Any

import av
import av.audio.codeccontext
import av.audio.stream
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream  # all that PyAV would import when it meets such a stream: nothing can be opened then

RATE = 16_000  # samples a second, mono, 16 bits: what Whisper hears
FORMATS = "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,gsm,matroska,webm,mov,mp4,m4a,3gp,mp3,mpeg,mpegts,ogg,w64,wav"
RATES = range(1_000, 384_001)
MOST_CHANNELS = 32
READ_SAMPLES = 65_536
BROKEN_LIMIT = 1_000  # packets in a row that cannot be decoded: then it is no sound


class Refused(Exception):
    """The file is not transcribed: a code and words for its owner."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Limits:
    """How much may come out, counted as it comes: headers say what they like."""

    def __init__(self, seconds: float, decoded_bytes: int, memory_bytes: int, cpu_s: int) -> None:
        self.seconds = seconds
        self.decoded_bytes = decoded_bytes
        self.memory_bytes = memory_bytes
        self.cpu_s = cpu_s
        self._samples = 0
        self._decoded = 0

    def bind(self) -> None:
        """Hand the process' own limits to the kernel; nothing can be opened afterwards."""
        resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_s, self.cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (self.memory_bytes, self.memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    def take(self, frame: av.AudioFrame) -> None:
        """Count a frame as it was decoded; its header is checked too, since resampling multiplies."""
        channels, width = len(frame.layout.channels), frame.format.bytes
        if frame.sample_rate not in RATES or channels > MOST_CHANNELS:
            raise Refused("audio_unreadable", f"it claims {frame.sample_rate} Hz and {channels} channels")
        self._decoded += frame.samples * channels * width
        if self._decoded > self.decoded_bytes:
            raise Refused("audio_too_long", f"it decodes to more than {self.decoded_bytes} bytes")

    def give(self, samples: int) -> None:
        """Count samples that go out."""
        self._samples += samples
        if self._samples > self.seconds * RATE:
            raise Refused("audio_too_long", f"it is longer than {self.seconds:g} s")


def decode(file: Any, limits: Limits) -> Generator[bytes]:
    """The first sound track as 16-bit mono samples, piece by piece; raises Refused."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        container = av.open(file, "r", metadata_errors="ignore", options=options, io_open=_refuse_to_open)
    except (av.FFmpegError, ValueError) as error:
        raise Refused("audio_unreadable", f"it is no audio file that can be read ({_words(error)})") from None
    with container:
        if not container.streams.audio:
            raise Refused("no_audio", "it has no sound track")
        for frame in _resampled(container, limits):
            limits.give(frame.samples)
            yield bytes(frame.planes[0])[: frame.samples * 2]


def _resampled(container: Any, limits: Limits) -> Iterator[av.AudioFrame]:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    fifo = av.AudioFifo()
    for frame in _frames(container):
        limits.take(frame)
        frame.pts = None  # gaps in the time stamps are not filled: nobody can hear them
        fifo.write(frame)
        if fifo.samples >= READ_SAMPLES:
            yield from resampler.resample(fifo.read())
    if fifo.samples:
        yield from resampler.resample(fifo.read())
    yield from resampler.resample(None)


def _frames(container: Any) -> Iterator[av.AudioFrame]:
    # A broken packet is skipped, as every player does; a file of nothing else is no sound.
    frames, broken = container.decode(audio=0), 0
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            return
        except av.error.InvalidDataError as error:
            broken += 1
            if broken > BROKEN_LIMIT:
                raise Refused("audio_unreadable", f"its sound track is broken ({_words(error)})") from None
            continue
        broken = 0
        yield frame


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError("a file may not name another one")


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)


def main(argument: str) -> int:
    """Decode stdin to stdout; on stderr, last, one line of JSON that says what was wrong."""
    av.logging.set_level(av.logging.PANIC)
    limits = Limits(**json.loads(argument))
    limits.bind()
    heard = False
    try:
        with (
            os.fdopen(0, "rb") as file,
            os.fdopen(1, "wb", 0) as out,
            contextlib.closing(decode(file, limits)) as pieces,
        ):
            for piece in pieces:
                heard = heard or bool(piece)
                out.write(piece)
        if not heard:
            raise Refused("audio_unreadable", "nothing in it could be decoded")
    except Refused as refused:
        return _say(refused.code, str(refused))
    except MemoryError:
        return _say("audio_too_long", "decoding it takes more memory than is allowed")
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        return _say("audio_unreadable", f"it is broken ({_words(error)})")
    return 0


def _say(code: str, message: str) -> int:
    print(json.dumps({"code": code, "message": message}), file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
