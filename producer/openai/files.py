"""`/v1/files`: what callers upload for batches, and what batches write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile

from common.errors import BodyTooLarge, InvalidField
from common.files import FileRecord
from common.keys import is_file_id
from producer import upload
from producer.auth import who
from producer.edge import edge
from producer.openai.asked import read
from producer.problems import Refusal
from producer.record import answer

router = APIRouter()
PARTS = "the parts file, purpose, expires_after[anchor] and expires_after[seconds]"
SHORTEST_S, LONGEST_S = 3600, 30 * 86_400
LONGEST_NAME = 255


class FileAsked(BaseModel):
    """The fields of an upload, which are all texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Literal["batch", "user_data"]
    anchor: Literal["created_at"] | None = None
    seconds: int | None = Field(None, ge=SHORTEST_S, le=LONGEST_S)


class FilesQuery(BaseModel):
    """Which page of the files."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = None
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(None, max_length=64)


@router.post("/v1/files", include_in_schema=False)
async def upload_file(request: Request) -> Response:
    """Keep a file."""
    if not upload.is_form(request):
        raise Refusal(415, "Content-Type", request.headers.get("content-type"), upload.FORM)
    here = edge(request)
    async with upload.parts_of(request, here.settings, most=4, what=PARTS) as parts:
        asked = _fields(parts)
        file = _file(parts, here.settings.max_file_bytes)
        assert file.size is not None
        name = (file.filename or "upload").rpartition("/")[2][-LONGEST_NAME:]
        owner = who(request).owner
        kept = await here.files.put(file.file, file.size, name, asked.purpose, asked.seconds, owner)
    return answer(file_out(kept))


def _fields(parts: FormData) -> FileAsked:
    given: dict[str, Any] = {}
    names = {"purpose": "purpose", "expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
    for name, value in parts.multi_items():
        if name == "file":
            continue
        if name not in names or isinstance(value, UploadFile):
            raise InvalidField(name[:60], "a part", PARTS)
        if names[name] in given:
            raise InvalidField(name, "given twice", "once")
        given[names[name]] = value
    return read(FileAsked, given)


def _file(parts: FormData, most: int) -> UploadFile:
    file = parts.get("file")
    if not isinstance(file, UploadFile) or len(parts.getlist("file")) > 1:
        raise InvalidField("file", "missing or given twice", "one file: the part needs a filename")
    if not file.size:
        raise InvalidField("file", "empty", "a file with something in it")
    if file.size > most:
        raise BodyTooLarge(most, "file")
    return file


@router.get("/v1/files", include_in_schema=False)
async def list_files(request: Request, query: Annotated[FilesQuery, Query()]) -> Response:
    """The files, newest first unless asked otherwise."""
    if query.after is not None and not is_file_id(query.after):
        raise InvalidField("after", query.after, "the id of a file")
    newest_first = query.order == "desc"
    files, owner = edge(request).files, who(request).sees
    found, more = await files.list_files(query.after, query.limit, newest_first, query.purpose, owner)
    return answer(page([file_out(record) for record in found], more))


@router.get("/v1/files/{file_id}", include_in_schema=False)
async def file(request: Request, file_id: str) -> Response:
    """A file's record."""
    return answer(file_out(await edge(request).files.get(file_id, who(request).sees)))


@router.delete("/v1/files/{file_id}", include_in_schema=False)
async def delete(request: Request, file_id: str) -> Response:
    """Forget a file. A batch that reads it goes on, and removes its content when it is over."""
    here = edge(request)
    found = await here.files.get(file_id, who(request).sees)
    await here.audited(request, file_id, found.owner)
    record = await here.files.delete(file_id, who(request).sees)
    if not await here.batches.reads(record.blob):
        await here.files.blobs.remove(record.blob)
    return answer({"id": file_id, "object": "file", "deleted": True})


@router.get("/v1/files/{file_id}/content", include_in_schema=False)
async def content(request: Request, file_id: str) -> Response:
    """A file's content."""
    here = edge(request)
    record = await here.files.get(file_id, who(request).sees)
    pieces = here.files.content(record)
    first = await anext(pieces)  # what is gone has an answer of its own
    headers = {"content-length": str(record.bytes), "content-disposition": "attachment"}
    return StreamingResponse(_after(first, pieces), 200, headers, "application/octet-stream")


async def _after(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


def file_out(record: FileRecord) -> dict[str, Any]:
    """A file, for a reader."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": record.created_at,
        **({"expires_at": record.expires_at} if record.expires_at else {}),  # OpenAI's schema has no null here
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }


def page(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page of a list."""
    ids = [one["id"] for one in data]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": data, **ends, "has_more": more}
