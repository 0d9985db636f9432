"""Files that callers upload and batches write: records in Redis, content in the blob store.

A file has an end from the start, after which record and content go by themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import IO, Any

import msgspec
import redis.asyncio as redis

from common import scripts
from common.access import ANONYMOUS
from common.blobs import Blobs
from common.errors import NotFound, TooMany
from common.jobs import decode, encode
from common.keys import Keys, is_file_id, new_file_id
from common.settings import Settings
from common.store import answered

log = logging.getLogger("jarvis.files")

PIECE = 1 << 20
#: Ids of a list that are looked at in one round trip.
PAGE = 500
#: A content outlives its record by this, for whoever has begun to read it.
AFTERWARDS_S = 3600


class FileRecord(msgspec.Struct, frozen=True):
    """A file as a reader sees it, and where its content is; times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    blob: str
    owner: str = ANONYMOUS


class Files:
    """The files of one namespace."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.blobs = Blobs(settings)
        self._prefix = Keys(settings.namespace, settings.shards).files

    # With `owner`, a file of another one is not there: nothing tells it from one that never was.

    async def put(
        self, file: IO[bytes], size: int, filename: str, purpose: str, keep_s: float | None, owner: str = ANONYMOUS
    ) -> FileRecord:
        """Keep a file of this owner. Raises TooMany, StoreUnavailable; nothing of it is left then."""
        keep_s = keep_s or self.settings.file_kept_s
        blob = await self.blobs.store_file(file, keep_s + AFTERWARDS_S)
        record = made(size, filename, purpose, keep_s, blob, owner)
        # When Redis does not answer the content stays until its time is over: the record may be there.
        settings = self.settings
        # One who has a key leaves room for others; without keys all are one.
        most = (settings.max_files, 0 if owner == ANONYMOUS else settings.max_owner_files)
        kept = await self._run("file_put", *stored(record), *most)
        if kept != 1 and await self.tidy():
            kept = await self._run("file_put", *stored(record), *most)
        if kept != 1:
            await self.blobs.remove(blob)
            raise TooMany("files", most[0]) if kept == 0 else TooMany(f"files of {owner}", most[1])
        return record

    async def get(self, file_id: str, owner: str | None = None) -> FileRecord:
        """A file's record. Raises NotFound, StoreUnavailable."""
        record = _record(file_id, await answered(self.redis.get(self._key(file_id))))
        if owner not in (None, record.owner):
            raise NotFound(file_id, "file")
        return record

    async def delete(self, file_id: str, owner: str | None = None) -> FileRecord:
        """Forget a file; its content stays for the batches that read it. Raises NotFound, StoreUnavailable."""
        whose = (await self.get(file_id, owner)).owner
        found = await self._run("file_delete", file_id, whose)
        return _record(file_id, found)

    async def content(self, record: FileRecord) -> AsyncIterator[bytes]:
        """A file's content, piece by piece. Raises NotFound when it is gone."""
        offset = 0
        while offset < record.bytes:
            try:
                piece = await self.blobs.read(record.blob, offset, PIECE)
            except FileNotFoundError:
                raise NotFound(record.id, "content of file") from None
            if not piece:
                raise NotFound(record.id, "whole content of file")
            yield piece
            offset += len(piece)

    async def list_files(
        self,
        after: str | None,
        limit: int,
        newest_first: bool = True,
        purpose: str | None = None,
        owner: str | None = None,
    ) -> tuple[list[FileRecord], bool]:
        """A page of files, and whether there are more."""
        found: list[FileRecord] = []
        while len(found) <= limit:
            ids = await ids_after(self.redis, list_of(self._prefix, "files", owner), after, PAGE, newest_first)
            if not ids:
                break
            after = ids[-1]
            rows = await answered(self.redis.mget([f"{self._prefix}file:{name}" for name in ids]))
            for name, row in zip(ids, rows, strict=True):
                with suppress(NotFound):
                    record = _record(name, row)
                    if purpose in (None, record.purpose):
                        found.append(record)
        return found[:limit], len(found) > limit

    async def tidy(self) -> int:
        """The lists forget files whose time is over; returns how many."""
        return await forget_gone(self.redis, self._prefix, "files", "file:")

    def _key(self, file_id: str) -> str:
        if not is_file_id(file_id):
            raise NotFound(file_id, "file")
        return f"{self._prefix}file:{file_id}"

    async def _run(self, name: str, *args: Any) -> Any:
        return await answered(scripts.run(self.redis, name, self._prefix, *args))


def _record(file_id: str, row: bytes | None) -> FileRecord:
    if row is None:
        raise NotFound(file_id, "file")
    try:
        return decode(row, type=FileRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("the record of file %s cannot be read: %s", file_id, error)
        raise NotFound(file_id, "file") from None


def made(size: int, filename: str, purpose: str, keep_s: float, blob: str, owner: str) -> FileRecord:
    """A new file's record."""
    now = int(time.time())
    return FileRecord(new_file_id(), size, now, now + int(keep_s), filename, purpose, blob, owner)


def stored(record: FileRecord) -> tuple[str, bytes, int, str]:
    """A file as the scripts keep it: id, record, end in milliseconds, owner."""
    return record.id, encode(record), record.expires_at * 1000, record.owner


def list_of(prefix: str, what: str, owner: str | None) -> str:
    """The key of the list of all files or batches, or of one owner's."""
    return f"{prefix}{what}" if owner is None else f"{prefix}{what}:of:{owner}"


async def ids_after(client: redis.Redis, key: str, after: str | None, count: int, newest_first: bool) -> list[str]:
    """Ids of a list that sorts by time, after one of them, which may be gone itself."""
    low, high = ("-", f"({after}" if after else "+") if newest_first else (f"({after}" if after else "-", "+")
    bounds = (high, low) if newest_first else (low, high)
    command = "ZREVRANGEBYLEX" if newest_first else "ZRANGEBYLEX"
    found = await answered(scripts.execute(client, command, key, *bounds, "LIMIT", 0, count))
    return [name.decode() for name in found]


async def forget_gone(client: redis.Redis, prefix: str, what: str, record: str) -> int:
    """Take those out of the lists of all files or batches whose records are gone; returns how many."""
    gone = await _forget(client, list_of(prefix, what, None), f"{prefix}{record}")
    for name in await scripts.execute(client, "SMEMBERS", f"{prefix}{what}:owners"):
        owner = name.decode()
        await _forget(client, list_of(prefix, what, owner), f"{prefix}{record}")
        await scripts.run(client, "list_end", prefix, what, owner)
    return gone


async def _forget(client: redis.Redis, key: str, record_key: str) -> int:
    gone, after = 0, None
    while ids := await ids_after(client, key, after, PAGE, newest_first=False):
        after = ids[-1]
        pipe = client.pipeline(transaction=False)
        for name in ids:
            pipe.exists(f"{record_key}{name}")
        there = await pipe.execute()
        # A record is made together with its place in the list, and never comes back.
        old = [name for name, is_there in zip(ids, there, strict=True) if not is_there]
        if old:
            gone += int(await client.zrem(key, *old))
    return gone
