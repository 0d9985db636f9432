"""The length of a recording by its header, and its bound where none says it."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Callable

import pytest

from producer.duration import LEAST_BYTES_S, seconds_of


def wav(seconds: float, hertz: int = 16_000) -> bytes:
    """Silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(hertz)
        file.writeframes(bytes(int(seconds * hertz) * 2))
    return out.getvalue()


def flac(seconds: int) -> bytes:
    """A FLAC header that says so."""
    packed = (16_000 << 44 | seconds * 16_000).to_bytes(8, "big")
    return b"fLaC" + bytes(14) + packed + bytes(600_000)


def ogg(seconds: int) -> bytes:
    """An Ogg Opus file's first and last page."""
    page = b"OggS\x00\x04" + struct.pack("<q", seconds * 48_000)
    return b"OggS\x00\x02" + bytes(8) + b"OpusHead" + bytes(400_000) + page + bytes(20)


def mp3(seconds: int, kbits: int = 9, xing: bool = False) -> bytes:
    """MPEG 1 layer III at 44.1 kHz: 128 kbit/s, or with a frame count of its own."""
    head = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + struct.pack(">I", 0xFFFB0000 | kbits << 12)
    if xing:
        frames = seconds * 44_100 // 1152
        return head + bytes(32) + b"Xing" + struct.pack(">II", 1, frames) + bytes(700_000)
    return head + bytes(seconds * 16_000)


@pytest.mark.parametrize(
    ("data", "seconds"),
    [(wav(3.2), 4), (wav(60, 8_000), 61), (flac(90), 90), (ogg(75), 75), (mp3(40), 41), (mp3(120, xing=True), 120)],
    ids=["wav", "wav at 8 kHz", "flac", "ogg", "mp3", "mp3 with a count"],
)
def test_a_header_says_how_long_it_is(data: bytes, seconds: int) -> None:
    file = io.BytesIO(data)
    assert seconds_of(file) in (seconds - 1, seconds)
    assert file.tell() == 0


@pytest.mark.parametrize(
    "data", [b"x" * 50_000, b"RIFF" + bytes(49_996), b"OggS" + bytes(49_996), b"\xff\xfb" * 25_000]
)
def test_where_no_header_says_it_the_bytes_bound_it(data: bytes) -> None:
    assert seconds_of(io.BytesIO(data)) == math.ceil(len(data) / LEAST_BYTES_S)


@pytest.mark.parametrize("make", [lambda: flac(80_000), lambda: ogg(80_000)])
def test_a_header_that_claims_more_than_the_bytes_can_hold_is_not_believed(make: Callable[[], bytes]) -> None:
    data = make()
    assert seconds_of(io.BytesIO(data)) == math.ceil(len(data) / LEAST_BYTES_S)


@pytest.mark.parametrize("cut", [*range(60), 300])
@pytest.mark.parametrize("make", [lambda: wav(1), lambda: flac(9), lambda: ogg(9), lambda: mp3(9), lambda: mp3(9, 15)])
def test_a_header_that_is_cut_off_or_nonsense_fails_nothing(make: Callable[[], bytes], cut: int) -> None:
    assert seconds_of(io.BytesIO(make()[:cut])) >= 1
