"""Sound out of a file that somebody sent, decoded in a child process that may die of it (`audio_child.py`).

The worker itself touches no byte of the file but to hand it over. The child is killed when its job is cancelled, when
it takes too long, and when more comes out of it than a file may hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from common.errors import JobFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

Child = subprocess.Popen[bytes]

RATE = 16_000
BYTES_A_SECOND = 2 * RATE
CHILD = Path(__file__).with_name("audio_child.py")
#: Eight channels of 48 kHz at 16 bits, or stereo at 192 kHz: more than this, decoded, is no recording of that length.
DECODED_BYTES_A_SECOND = 768_000
MEMORY_BYTES = 768 * 1024 * 1024  # address space, of which PyAV with its libraries takes about 200 MiB
#: A child may take so long before its first sound, and then must decode ten times faster than one could listen.
START_S = 10.0
SPEED = 10.0
READ_BYTES = 1 << 18


class AudioLimits(msgspec.Struct, frozen=True):
    """What a file may hold; `start_s` is the time until its first sound."""

    seconds: float
    start_s: float = START_S
    memory_bytes: int = MEMORY_BYTES

    @property
    def argument(self) -> str:
        """The child's limits."""
        asked = {
            "seconds": self.seconds,
            "decoded_bytes": int(self.seconds * DECODED_BYTES_A_SECOND) + DECODED_BYTES_A_SECOND,
            "memory_bytes": self.memory_bytes,
            "cpu_s": int(self.start_s + self.seconds / SPEED) + 1,
        }
        return json.dumps(asked)


async def decode(data: bytes, limits: AudioLimits) -> Samples:
    """The samples of a file, 16 kHz mono, int16.

    Raises JobFailed: `audio_unreadable`, `no_audio`, `audio_too_long`, `audio_timeout`.
    """
    import numpy as np

    if not data:
        raise JobFailed("audio_unreadable", "the audio cannot be used: it is empty")
    with await asyncio.to_thread(_file_of, data) as file:
        child = await _started(file, limits)
        try:
            return np.frombuffer(await _output(child, limits), np.int16)
        finally:
            await _gone(child)


async def _started(file: IO[bytes], limits: AudioLimits) -> Child:
    # Not the loop's own way: uvloop forks, and OpenBLAS' fork handler waits for its threads, which may be at work for
    # an engine and wait for the GIL, which the forking thread holds. subprocess uses vfork, which runs no handlers.
    starting = asyncio.ensure_future(asyncio.to_thread(_start, file, limits))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _gone(await starting)
        raise


def _start(file: IO[bytes], limits: AudioLimits) -> Child:
    # -P keeps the working directory, which is not ours, out of the child's path.
    command = [sys.executable, "-P", str(CHILD), limits.argument]
    environment = {"PATH": os.environ.get("PATH", "")}
    out, err = subprocess.PIPE, subprocess.PIPE
    return subprocess.Popen(command, stdin=file, stdout=out, stderr=err, env=environment, start_new_session=True)


def _file_of(data: bytes) -> IO[bytes]:
    # A file, and not a pipe: containers keep their index at the end.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
    file.write(data)
    file.seek(0)
    return file


async def _output(child: Child, limits: AudioLimits) -> bytes:
    """All that a child writes; it is read in threads, which end when the child does."""
    samples = bytearray()
    started = asyncio.get_running_loop().time()
    try:
        while True:
            async with asyncio.timeout_at(started + limits.start_s + len(samples) / BYTES_A_SECOND / SPEED):
                piece = await asyncio.to_thread(_read, child.stdout)
            if not piece:
                break
            samples += piece
            if len(samples) > (limits.seconds + 1) * BYTES_A_SECOND:
                raise _failed("audio_too_long", f"it is longer than {limits.seconds:g} s")
    except TimeoutError:
        raise _failed("audio_timeout", f"decoding it takes too long (more than {limits.start_s:g} s)") from None
    if code := await asyncio.to_thread(child.wait):
        raise _why(code, await asyncio.to_thread(_read, child.stderr))
    return bytes(samples)


def _read(pipe: IO[bytes] | None) -> bytes:
    # Not os.read: a number could be another file's by the time that a late thread gets to it.
    assert isinstance(pipe, io.BufferedReader), "opened with PIPE"
    return pipe.read1(READ_BYTES)


def _why(code: int, errors: bytes) -> JobFailed:
    """What the child said last; a child that was killed by one of its limits says nothing."""
    with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
        said: dict[str, Any] = json.loads(errors.splitlines()[-1])
        return _failed(str(said["code"]), str(said["message"]))
    return _failed("audio_unreadable", f"its decoder died of it (exit {code})")


def _failed(code: str, message: str) -> JobFailed:
    return JobFailed(code, f"the audio cannot be used: {message}")


async def _gone(child: Child) -> None:
    child.kill()  # does nothing to one that has been waited for; who still reads from it comes to an end
    await asyncio.to_thread(_forget, child)


def _forget(child: Child) -> None:
    with child:  # closes the pipes and waits
        pass
