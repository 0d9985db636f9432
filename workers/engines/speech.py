"""Where there is speech, and where a recording may be cut: into chunks that Whisper hears whole.

The cuts are those of faster-whisper's batched pipeline: the speech between pauses, put together without the pauses, up
to a chunk's length. A long recording is searched block by block, so that its first chunk need not wait for its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

RATE = 16_000  # samples a second
SEEK_RATE = 100  # Whisper counts time in frames of 10 ms
BLOCK_S = 600  # of a recording searched at once: about two seconds of one core
QUIET_S = 5  # how far from a chunk's end the quietest moment is looked for, without voice detection

Region = tuple[int, int]  # first sample, and the one after the last


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some regions of one recording, heard as if there was nothing between them."""

    regions: tuple[Region, ...]

    @property
    def seek(self) -> int:
        """Where it begins in the recording, in frames of 10 ms: its name, as in Whisper's segments."""
        return self.regions[0][0] * SEEK_RATE // RATE

    @property
    def end_s(self) -> float:
        """Where it ends in the recording."""
        return self.regions[-1][1] / RATE

    @property
    def duration_s(self) -> float:
        """How long it is itself."""
        return sum(end - start for start, end in self.regions) / RATE

    def cut_from(self, samples: Samples) -> NDArray[np.float32]:
        """Its sound, from -1 to 1."""
        import numpy as np

        whole = np.concatenate([samples[start:end] for start, end in self.regions])
        scaled: NDArray[np.float32] = whole.astype(np.float32) / np.float32(32768.0)
        return scaled

    def in_recording(self, start_s: float, end_s: float) -> tuple[float, float]:
        """A stretch of this chunk's own time in the recording's."""
        return self._at(start_s, last=False), self._at(end_s, last=True)

    def word_in_recording(self, start_s: float, end_s: float) -> tuple[float, float]:
        """As `in_recording`, for a word: it is spoken in one region, the one of its middle."""
        middle, before = (start_s + end_s) / 2, 0.0
        for start, end in self.regions:
            length = (end - start) / RATE
            if middle < before + length or (start, end) == self.regions[-1]:
                shift = start / RATE - before
                return _between(start_s + shift, start, end), _between(end_s + shift, start, end)
            before += length
        raise AssertionError("a chunk has a region")

    def _at(self, time_s: float, last: bool) -> float:
        left = time_s * RATE
        for start, end in self.regions:
            if left < end - start or (last and left <= end - start):
                return round((start + left) / RATE, 2)
            left -= end - start
        return round(self.end_s, 2)


def _between(time_s: float, start: int, end: int) -> float:
    return round(min(max(time_s, start / RATE), end / RATE), 2)


def chunks(samples: Samples, chunk_s: float, vad: Any | None, block: int = BLOCK_S * RATE) -> Iterator[list[Chunk]]:
    """The chunks of a recording, in order and as many at a time as are found together.

    `vad` is faster-whisper's VadOptions, or None to leave nothing out.
    """
    longest = int(chunk_s * RATE)
    if vad is None:
        yield [Chunk((region,)) for region in windows(samples, longest)]
        return
    held: list[Region] = []
    for regions in speech(samples, vad, block):
        *whole, held = _grouped([*held, *regions], longest)
        yield [Chunk(tuple(group)) for group in whole]
    if held:
        yield [Chunk(tuple(held))]


def _grouped(regions: list[Region], longest: int) -> list[list[Region]]:
    """Neighbours put together as long as they fit; the last group, which may be empty, could take more."""
    groups: list[list[Region]] = [[]]
    length = 0
    for start, end in regions:
        if groups[-1] and length + end - start > longest:
            groups.append([])
            length = 0
        groups[-1].append((start, end))
        length += end - start
    return groups


def speech(samples: Samples, vad: Any, block: int = BLOCK_S * RATE) -> Iterator[list[Region]]:
    """Where the Silero model hears a voice, block by block."""
    import numpy as np
    from faster_whisper.vad import get_speech_timestamps

    start = 0
    while start < len(samples):
        stop = min(len(samples), start + block)
        sound = samples[start:stop].astype(np.float32) / np.float32(32768.0)
        found = [(start + one["start"], start + one["end"]) for one in get_speech_timestamps(sound, vad)]
        # Speech at the block's end goes on behind it: the next block begins where it began.
        cut = stop < len(samples) and len(found) > 1 and found[-1][1] >= stop
        yield found[:-1] if cut else found
        start = found[-1][0] if cut else stop


def windows(samples: Samples, longest: int) -> Iterator[Region]:
    """The whole recording in windows, each cut at the quietest tenth of a second near its end."""
    import numpy as np

    step = RATE // 10
    start = 0
    while start < len(samples):
        end = start + longest
        if end < len(samples):
            first = max(start + step, end - QUIET_S * RATE)
            steps = (end - first) // step
            tail = samples[first : first + steps * step].reshape(steps, step).astype(np.float32)
            end = first + int((tail**2).sum(axis=1).argmin()) * step + step // 2
        yield start, min(end, len(samples))
        start = end
