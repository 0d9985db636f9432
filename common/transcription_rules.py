"""What an entry of kind transcription may say: values that faster-whisper and Whisper know, within their bounds."""

from __future__ import annotations

from collections.abc import Iterator

from common.errors import shown
from common.languages import LANGUAGES
from common.model import Model

Found = Iterator[tuple[str, str]]

#: What options of faster-whisper may be: the lowest and the highest value.
RANGES: dict[str, tuple[float, float]] = {
    "device_index": (0, 1024),
    "cpu_threads": (0, 1024),
    "batch_size": (1, 256),
    "beam_size": (1, 32),
    "max_new_tokens": (1, 224),
    "chunk_s": (1, 30),
    "vad_threshold": (0, 1),
    "vad_min_silence_ms": (0, 10_000),
    "vad_speech_pad_ms": (0, 10_000),
}
#: CTranslate2's; which of them a device runs is its own to say, when the worker starts.
COMPUTE_TYPES = (
    "default", "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16",
    "float32",
)  # fmt: skip
DEFAULTS: dict[str, tuple[str, ...]] = {
    "language": LANGUAGES,
    "task": ("transcribe", "translate"),
    "response_format": ("json", "text", "srt", "vtt", "verbose_json"),
}
OPTIONS = {"device": ("auto", "cpu", "cuda"), "compute_type": COMPUTE_TYPES}


def contradictions(model: Model) -> Found:
    """What is wrong: the key, and why."""
    if model.kind == "transcription":
        yield from _options(model)
        yield from _defaults(model)


def _options(model: Model) -> Found:
    for name, (lowest, highest) in RANGES.items():
        value = model.options.get(name, lowest)
        if not lowest <= value <= highest:
            yield f"options.{name}", f"{name} is {shown(value)}; allowed: {lowest:g} to {highest:g}"
    for name, allowed in OPTIONS.items():
        value = model.options.get(name, allowed[0])
        if value not in allowed:
            yield f"options.{name}", f"{name} is {shown(value)}; allowed: {', '.join(allowed)}"


def _defaults(model: Model) -> Found:
    for name, allowed in DEFAULTS.items():
        value = model.defaults.get(name, allowed[0])
        if value not in allowed:
            yield "defaults", f"{name} is {shown(value)}; allowed: {', '.join(allowed)}"
    if not 0 <= model.defaults.get("temperature", 0) <= 1:
        yield "defaults", f"temperature is {shown(model.defaults['temperature'])}; allowed: 0 to 1"
    granularities = model.defaults.get("timestamp_granularities", ["segment"])
    if not granularities or any(one not in ("word", "segment") for one in granularities):
        yield "defaults", f"timestamp_granularities is {shown(granularities)}; allowed: word, segment or both"
