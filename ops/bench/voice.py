"""A voice made of sines: vowels with three formants, hissed consonants, pauses between phrases.

It says nothing, but Silero's voice detection takes it for speech (with a low threshold), so that recordings of any
length can be made where there is none to download.
"""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
#: The threshold of voice detection at which all of the voice, and none of its pauses, is speech.
THRESHOLD = 0.15
FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
WIDTHS, GAINS = (60, 90, 120), (1.0, 0.6, 0.3)  # of the formants
HARMONICS = 36
LOUDNESS = 12_000


def voice(seconds: float, seed: int = 0, repeat_s: float = 60.0) -> NDArray[np.int16]:
    """So much of it; after `repeat_s` it begins again."""
    import numpy as np

    random = np.random.default_rng(seed)
    parts: list[Any] = []
    wanted = int(min(seconds, repeat_s) * RATE)
    while sum(map(len, parts)) < wanted:
        for _ in range(random.integers(6, 14)):
            parts += [_consonant(random), _vowel(random)]
        parts.append(random.standard_normal(int(RATE * random.uniform(0.4, 0.9))) * 0.0008)
    once = np.concatenate(parts)[:wanted]
    scaled: NDArray[np.int16] = (np.resize(once, int(seconds * RATE)) / np.abs(once).max() * LOUDNESS).astype(np.int16)
    return scaled


def _consonant(random: Any) -> Any:
    import numpy as np

    length = int(RATE * random.uniform(0.03, 0.08))
    return random.standard_normal(length) * 0.15 * np.hanning(length)


def _vowel(random: Any) -> Any:
    """A glide from one vowel to another at a pitch that moves."""
    import numpy as np

    length = int(RATE * random.uniform(0.12, 0.22))
    pitch = random.uniform(95, 140) * np.linspace(1, random.uniform(0.85, 1.15), length)
    phase, way = 2 * np.pi * np.cumsum(pitch) / RATE, np.linspace(0, 1, length)
    first, last = (FORMANTS[random.integers(len(FORMANTS))] for _ in range(2))
    sound = np.zeros(length)
    for harmonic in range(1, HARMONICS):
        frequency = harmonic * pitch
        strength = sum(
            gain / (1 + ((frequency - (low * (1 - way) + high * way)) / width) ** 2)
            for low, high, width, gain in zip(first, last, WIDTHS, GAINS, strict=True)
        )
        sound += strength / harmonic**0.3 * np.sin(harmonic * phase)
    edge = np.minimum(np.arange(length), length - np.arange(length)) / (0.02 * RATE)
    return sound * np.minimum(1, edge) * 0.3


def wav(samples: NDArray[np.int16], rate: int = RATE) -> bytes:
    """The samples as a mono WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()
