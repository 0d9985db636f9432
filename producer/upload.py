"""Recordings: from a part of a form, or base64 in a JSON body, to the blob store; Redis only ever sees a reference.

Nothing of a recording is looked at here but its length and its digest. A form is spooled to disk while it comes in, so
that this process holds none of it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from common.errors import BodyTooLarge, InvalidField
from common.settings import Settings
from producer.body import check_encoding, decode_object
from producer.explain import Invalid
from producer.problems import Refusal

FORM = "multipart/form-data"
PARTS = f"{FORM} of two parts: job (JSON) and file (the recording)"
BASE64 = f"base64 of a recording, or the recording itself as the part `file` of {FORM}"


class Recording:
    """A recording that is not stored yet. Not a dataclass: msgspec would encode that by itself, file and all."""

    def __init__(self, file: IO[bytes], sha256: str) -> None:
        self.file = file
        self.sha256 = sha256

    @classmethod
    def of_text(cls, text: str | None) -> Recording:
        """Decode base64; raises InvalidField."""
        if text is None:
            raise Invalid([{"field": "input.audio", "value": None, "message": f"it is required: {BASE64}"}])
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidField("input.audio", text, BASE64) from None
        if not data:
            raise InvalidField("input.audio", text, f"{BASE64}; it is empty")
        return cls(io.BytesIO(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Form:
    """A job and its recording."""

    job: dict[str, Any]
    recording: Recording


def is_form(request: Request) -> bool:
    """Whether a recording comes as a file."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


@asynccontextmanager
async def form(request: Request, settings: Settings) -> AsyncIterator[Form]:
    """A job and its recording as the parts of a form, of which nothing is left afterwards.

    Raises Refusal, InvalidField, BodyTooLarge, MalformedBody.
    """
    async with parts_of(request, settings, most=2, what=PARTS) as parts:
        yield await _read(parts, settings.max_audio_bytes)


@asynccontextmanager
async def parts_of(request: Request, settings: Settings, most: int, what: str) -> AsyncIterator[FormData]:
    """The parts of a form, at most so many, of which nothing is left afterwards; `what` says which are allowed.

    Raises Refusal, InvalidField, BodyTooLarge.
    """
    check_encoding(request)
    refuse_foreign_pages(request)
    try:
        parts = await request.form(max_files=2, max_fields=most, max_part_size=settings.max_body_bytes)
    except HTTPException as error:
        raise Refusal(400, "body", str(error.detail), what) from None
    try:
        yield parts
    finally:
        await parts.close()


def refuse_foreign_pages(request: Request) -> None:
    """Refuse what a page of another site posts: a browser sends it a form without asking us first."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Refusal(403, "Origin", origin, "no page of another site")


async def _read(parts: FormData, most_bytes: int) -> Form:
    for name, _ in parts.multi_items():
        if name not in ("job", "file"):
            raise InvalidField(name, "a part", PARTS)
    if len(parts.multi_items()) > len(parts):
        raise InvalidField("body", "a part that comes twice", PARTS)
    recording = await recording_of(parts, most_bytes)
    job = decode_object(await _bytes_of(parts.get("job")))
    asked = job.setdefault("input", {})
    if isinstance(asked, dict) and asked.get("audio") is not None:
        raise InvalidField("input.audio", "given twice", "either the part `file` or input.audio")
    return Form(job, recording)


async def recording_of(parts: FormData, most_bytes: int) -> Recording:
    """The part `file`; raises InvalidField, BodyTooLarge."""
    file = parts.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidField("file", "missing" if file is None else "a text", "a file: the part needs a filename")
    if not file.size:
        raise InvalidField("file", "empty", "a recording")
    if file.size > most_bytes:
        raise BodyTooLarge(most_bytes, "file")
    return Recording(file.file, await asyncio.to_thread(_digest, file.file))


async def _bytes_of(part: UploadFile | str | None) -> bytes:
    if isinstance(part, UploadFile):
        return await part.read()
    return (part or "").encode()


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    file.seek(0)
    return digest.hexdigest()
