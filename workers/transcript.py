"""A transcript as it grows out of chunks, from where an earlier delivery left it, and the forms it can be given.

What was emitted is a commitment: the texts of all segment events, put together, are always the text of the result. A
segment's `seek` names its chunk, so that a job that is delivered again knows which chunk to go on with.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from common.jobs import JobResult
from workers.engines.protocol import Heard, Segment

Shown = dict[str, Any]  # a segment as its event and verbose_json show it

#: Two stretches that overlap by less are neighbours: times are rounded to hundredths.
SAME_S = 0.015


class Transcript:
    """The segments of one recording so far."""

    def __init__(self, params: dict[str, Any], emitted: list[Shown], length_s: float) -> None:
        self.length_s = length_s
        self.format: str = params.get("response_format") or "json"
        self.granularities: list[str] = params.get("timestamp_granularities") or ["segment"]
        self.task: str = params.get("task") or "transcribe"
        self.temperature: float = params.get("temperature") or 0.0
        self.segments = list(emitted)
        self._resumed = [one for one in emitted if one["seek"] == emitted[-1]["seek"]]
        self.language: str | None = emitted[-1]["language"] if emitted else params.get("language")

    @property
    def words(self) -> bool:
        """Whether words have times of their own."""
        return "word" in self.granularities

    @property
    def timestamps(self) -> bool:
        """Whether segments are as fine as the model can tell; for a text alone they cost time and add nothing."""
        return self.format in ("srt", "vtt", "verbose_json")

    @property
    def from_seek(self) -> int:
        """The chunk to go on with: all before it are emitted, of itself perhaps not all."""
        return int(self.segments[-1]["seek"]) if self.segments else 0

    @property
    def text(self) -> str:
        """All that is said."""
        return "".join(segment["text"] for segment in self.segments)

    def take(self, heard: Heard) -> list[Shown]:
        """Add a chunk; returns its segments that are new."""
        self.language = heard.language
        shown = []
        for segment in self._new(heard):
            self.segments.append(self._shown(heard, segment))
            shown.append(self.segments[-1])
        return shown

    def _new(self, heard: Heard) -> list[Segment]:
        known = self._resumed
        if not known or heard.seek != known[0]["seek"]:
            return heard.segments
        if [_name(one) for one in heard.segments[: len(known)]] == [_name(one) for one in known]:
            return heard.segments[len(known) :]
        # Heard again in other company, a chunk may be cut a little differently: then its time says what is new.
        return [one for one in heard.segments if one.start >= float(known[-1]["end"]) - SAME_S]

    def _shown(self, heard: Heard, segment: Segment) -> Shown:
        first = not self.segments
        shown: Shown = {
            "id": len(self.segments),
            "seek": heard.seek,
            "start": segment.start,
            "end": segment.end,
            "text": segment.text.lstrip() if first else segment.text,
            "language": heard.language,
        }
        if self.format == "verbose_json":
            shown |= {
                "tokens": segment.tokens,
                "temperature": self.temperature,
                "avg_logprob": segment.avg_logprob,
                "compression_ratio": segment.compression_ratio,
                "no_speech_prob": segment.no_speech_prob,
            }
        if self.words:
            shown["words"] = msgspec.to_builtins(segment.words or [])
        return shown

    def result(self) -> JobResult:
        """The transcript in the form that was asked for."""
        output: dict[str, Any] = {"text": self.text, "language": self.language, "duration": round(self.length_s, 2)}
        if self.format == "srt":
            output["srt"] = srt(self.segments)
        elif self.format == "vtt":
            output["vtt"] = vtt(self.segments)
        elif self.format == "verbose_json":
            output |= {"task": self.task} | self._parts()
        return JobResult(output, {"audio_seconds": math.ceil(self.length_s)})

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self.words:
            parts["words"] = [word for segment in self.segments for word in segment["words"]]
        if "segment" in self.granularities:
            without = ("words", "language")
            parts["segments"] = [{k: v for k, v in one.items() if k not in without} for one in self.segments]
        return parts


def _name(one: Segment | Shown) -> tuple[float, float, str]:
    if isinstance(one, Segment):
        return one.start, one.end, one.text.strip()
    return one["start"], one["end"], one["text"].strip()


def srt(segments: list[Shown]) -> str:
    """SubRip: numbered from 1, a comma before the milliseconds."""
    cues = [
        f"{number}\n{clock(one['start'], ',')} --> {clock(one['end'], ',')}\n{_line(one['text'])}\n"
        for number, one in enumerate(segments, 1)
    ]
    return "\n".join(cues)


def vtt(segments: list[Shown]) -> str:
    """WebVTT, in which & and < are written as in HTML."""
    cues = [
        f"{clock(one['start'], '.')} --> {clock(one['end'], '.')}\n"
        f"{_line(one['text']).replace('&', '&amp;').replace('<', '&lt;')}\n"
        for one in segments
    ]
    return "WEBVTT\n\n" + "\n".join(cues)


def clock(seconds: float, point: str) -> str:
    """A time as subtitles have it: 01:02:03.450."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"


def _line(text: str) -> str:
    # An arrow would be read as a cue's times, an empty line as its end.
    return " ".join(text.split()).replace("-->", "->")
