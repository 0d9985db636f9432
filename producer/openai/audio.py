"""What OpenAI's audio endpoints take as a form, the job it stands for, and the answers in their five forms."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from common.errors import InvalidField, MalformedBody
from common.jobs import JobEvent
from common.results import StoredResult
from producer.body import decode_object
from producer.openai.asked import Unsupported, read
from producer.record import answer

MOST_FIELDS = 40
FIELDS = "the fields of OpenAI's audio endpoints and the part `file`"
LISTS = ("timestamp_granularities", "include", "keywords", "languages", "known_speaker_names")
TEXTS = {"srt": "application/x-subrip", "vtt": "text/vtt", "text": "text/plain"}
PARAMS = ("language", "prompt", "temperature", "response_format", "timestamp_granularities")


class AudioAsked(BaseModel):
    """The fields of a form, which are all texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=64)
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    response_format: str | None = None
    timestamp_granularities: list[str] | None = None
    stream: bool | None = None
    webhook: str | None = Field(None, max_length=8192)  # ours: where the job's end is told, as JSON
    chunking_strategy: Literal["auto"] | None = None
    include: Unsupported = None
    keywords: Unsupported = None
    languages: Unsupported = None
    known_speaker_names: Unsupported = None
    known_speaker_references: Unsupported = None

    def job(self, task: Literal["transcribe", "translate"]) -> dict[str, Any]:
        """The body of the same request to `/v1/jobs`, without the recording."""
        params = {name: getattr(self, name) for name in PARAMS if getattr(self, name) is not None}
        job = {"kind": "transcription", "model": self.model, "input": {}, "params": {**params, "task": task}}
        return job if self.webhook is None else {**job, "webhook": _object("webhook", self.webhook)}


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        return decode_object(text.encode())
    except MalformedBody as error:
        raise InvalidField(field, "a text", f"a JSON object: {error.reason}") from None


def fields_of(parts: FormData) -> AudioAsked:
    """The form's fields but for the file; raises Invalid naming those that are wrong."""
    given: dict[str, Any] = {}
    for name, value in parts.multi_items():
        if name == "file":
            continue
        if isinstance(value, UploadFile):
            raise InvalidField(name, "a file", FIELDS)
        plain = re.sub(r"\[\d*\]$", "", name)  # the SDKs write lists as name[] or name[0]
        if plain in LISTS:
            given.setdefault(plain, []).append(value)
        elif plain in given:
            raise InvalidField(name, "given twice", "once")
        else:
            given[plain] = value
    return read(AudioAsked, given)


def answered(found: StoredResult, form: str | None, headers: dict[str, str]) -> Response:
    """A transcript in the form that was asked for."""
    made = document(found, form)
    return answer(made, 200, headers) if isinstance(made, dict) else Response(made, 200, headers, TEXTS[form or ""])


def document(found: StoredResult, form: str | None) -> dict[str, Any] | str:
    """A transcript in the form that was asked for: an object, or a text."""
    output: dict[str, Any] = msgspec.json.decode(found.output or b"{}")
    if form in ("srt", "vtt"):
        return str(output[form])
    if form == "text":
        return str(output["text"]) + "\n"
    usage = {"type": "duration", "seconds": (found.record.usage or {}).get("audio_seconds", 0)}
    return {**output, "usage": usage} if form == "verbose_json" else {"text": output["text"], "usage": usage}


class TranscriptChunks:
    """The events of a streamed transcription."""

    done = b""

    def first(self) -> bytes:
        """Nothing comes before the first segment."""
        return b""

    def piece(self, event: JobEvent) -> bytes | None:
        """What a segment says; nothing for any other event."""
        if event.event != "segment":
            return None
        return _event({"type": "transcript.text.delta", "delta": event.data["text"]})

    def last(self, output: dict[str, Any], usage: Any) -> bytes:
        """The whole text."""
        return _event({"type": "transcript.text.done", "text": output["text"]})


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), msgspec.json.encode(data))
