"""How long a recording is, by its header: seconds, rounded up. Nothing is decoded, and little is read.

What a header says is taken as it is: a worker that decodes the recording finds out, and what was counted too low is
taken of the key's limits then. Where no header says it, the length in bytes bounds it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import IO

#: Less than this no recording of speech has a second (8 kbit/s).
LEAST_BYTES_S = 1000
HEAD, TAIL = 65_536, 65_536
MPEG_KBITS = {  # of layer III, by version: 1; 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def seconds_of(file: IO[bytes]) -> int:
    """Seconds of a recording; an upper bound where its header does not say them. The file is left at its start."""
    try:
        file.seek(0, 2)
        size = file.tell()
        file.seek(0)
        head = file.read(HEAD)
        file.seek(max(0, size - TAIL))
        tail = file.read(TAIL)
    finally:
        file.seek(0)
    return seconds_told(head, tail, size)


def seconds_told(head: bytes, tail: bytes, size: int) -> int:
    """The same by a recording's first HEAD and last TAIL bytes."""
    found = _told(head, tail, size)
    bound = size / LEAST_BYTES_S
    return max(1, math.ceil(min(found, bound) if found else bound))


def _told(head: bytes, tail: bytes, size: int) -> float | None:
    for magic, read in FORMATS:
        if head.startswith(magic):
            try:
                return read(head, tail, size)
            except (struct.error, IndexError, ValueError, ZeroDivisionError):
                return None
    return None


def _wav(head: bytes, tail: bytes, size: int) -> float | None:
    at = 12
    while at + 8 <= len(head):
        name, length = struct.unpack_from("<4sI", head, at)
        if name == b"fmt ":
            bytes_s: int = struct.unpack_from("<I", head, at + 16)[0]
            return size / bytes_s
        at += 8 + length + length % 2
    return None


def _flac(head: bytes, tail: bytes, size: int) -> float | None:
    packed = int.from_bytes(head[18:26], "big")
    hertz, samples = packed >> 44, packed & (1 << 36) - 1
    return samples / hertz if samples else None


def _ogg(head: bytes, tail: bytes, size: int) -> float | None:
    page = tail.rfind(b"OggS")
    (samples,) = struct.unpack_from("<q", tail, page + 6)
    vorbis = head.find(b"\x01vorbis", 0, 512)
    hertz = struct.unpack_from("<I", head, vorbis + 12)[0] if vorbis >= 0 else 48_000  # Opus always counts in these
    return samples / hertz if page >= 0 and samples > 0 else None


def _mp3(head: bytes, tail: bytes, size: int) -> float | None:
    at = 0
    if head.startswith(b"ID3"):
        a, b, c, d = head[6:10]
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    flags = struct.unpack_from(">I", head, at)[0]
    version, layer, rate = flags >> 19 & 3, flags >> 17 & 3, flags >> 10 & 3
    if flags >> 21 != 0x7FF or layer != 1:
        return None
    samples, hertz = (1152 if version == 3 else 576), MPEG_HERTZ[version][rate]
    for name in (b"Xing", b"Info"):
        told = head.find(name, at, at + 200)
        if told >= 0 and head[told + 7] & 1:
            frames: int = struct.unpack_from(">I", head, told + 8)[0]
            return frames * samples / hertz
    if b"VBRI" in head[at : at + 200]:
        return None
    return (size - at) / (MPEG_KBITS[version == 3][flags >> 12 & 15] * 125)


Read = Callable[[bytes, bytes, int], float | None]
FORMATS: tuple[tuple[bytes | tuple[bytes, ...], Read], ...] = (
    ((b"RIFF", b"RF64"), _wav),
    (b"fLaC", _flac),
    (b"OggS", _ogg),
    ((b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"), _mp3),
)
