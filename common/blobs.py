"""Inputs and results too large for Redis, kept in a folder (or whatever fsspec address is set) by reference.

A blob's name starts with the hour in which it may go, so that sweeping needs no index. A reference starts with
`@`, which no JSON value does.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import fsspec

from common.settings import Settings

_HOUR_S = 3600


class Blobs:
    """Stores and loads bytes by reference."""

    def __init__(self, settings: Settings) -> None:
        self.inline_bytes = settings.inline_bytes
        self._fs, self._root = fsspec.core.url_to_fs(settings.blobs, auto_mkdir=True)

    async def store(self, data: bytes, keep_s: float) -> bytes:
        """The data itself when it is small, else a reference to where it now lies for at least `keep_s`."""
        if len(data) <= self.inline_bytes:
            return data
        name = _name(keep_s)
        await asyncio.to_thread(self._write, name, data)
        return f"@{name}".encode()

    async def store_file(self, file: IO[bytes], keep_s: float) -> str:
        """A reference to where the rest of a file now lies, whatever its size."""
        name = _name(keep_s)
        await asyncio.to_thread(self._copy_in, name, file)
        return f"@{name}"

    async def length(self, reference: str) -> int:
        """How many bytes a blob has. Raises FileNotFoundError when its time is over."""
        return int(await asyncio.to_thread(self._fs.size, self._path(reference)))

    async def read(self, reference: str, offset: int, count: int) -> bytes:
        """A stretch of a blob, shorter at its end. Raises FileNotFoundError when its time is over."""
        return await asyncio.to_thread(self._stretch, self._path(reference), offset, count)

    async def join(self, references: Sequence[str], keep_s: float) -> tuple[str, int]:
        """A reference to a new blob of what these hold, one after the other, and how many bytes that is."""
        name = _name(keep_s)
        return f"@{name}", await asyncio.to_thread(self._join, [self._path(one) for one in references], name)

    async def keep(self, reference: str, keep_s: float) -> str:
        """A reference to the same that holds for `keep_s` from now: the old one, or that of a copy."""
        hour, name = reference[1:].partition("/")[0], _name(keep_s)
        if int(hour) >= int(name.partition("/")[0]):
            return reference
        await asyncio.to_thread(self._copy, reference[1:], name)
        return f"@{name}"

    async def remove(self, reference: str) -> None:
        """Remove a blob before its time; one that is gone already is fine."""
        await asyncio.to_thread(self._remove, reference[1:])

    async def load(self, data: bytes) -> bytes:
        """What `store` was given. Raises FileNotFoundError when its time is over."""
        if not data.startswith(b"@"):
            return data
        return await asyncio.to_thread(self._read, data[1:].decode())

    async def sweep(self) -> int:
        """Remove every blob whose time is over; returns how many hours' worth went."""
        return await asyncio.to_thread(self._sweep)

    def _write(self, name: str, data: bytes) -> None:
        # Under another name first: a reader or a crash never meets half a blob.
        self._fs.pipe_file(f"{self._root}/{name}.part", data)
        self._fs.mv(f"{self._root}/{name}.part", f"{self._root}/{name}")

    def _copy_in(self, name: str, file: IO[bytes]) -> None:
        path = f"{self._root}/{name}"
        with self._fs.open(f"{path}.part", "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        self._fs.mv(f"{path}.part", path)

    def _copy(self, name: str, new: str) -> None:
        with self._fs.open(f"{self._root}/{name}", "rb") as file:
            self._copy_in(new, file)

    def _path(self, reference: str) -> str:
        return f"{self._root}/{reference[1:]}"

    def _stretch(self, path: str, offset: int, count: int) -> bytes:
        with self._fs.open(path, "rb") as file:
            file.seek(offset)
            return bytes(file.read(count))

    def _join(self, paths: list[str], name: str) -> int:
        path = f"{self._root}/{name}"
        with self._fs.open(f"{path}.part", "wb") as out:
            for one in paths:
                with self._fs.open(one, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
            size = int(out.tell())
        self._fs.mv(f"{path}.part", path)
        return size

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def _read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def _sweep(self) -> int:
        if not self._fs.exists(self._root):
            return 0
        now = time.time() / _HOUR_S
        folders = [str(path) for path in self._fs.ls(self._root, detail=False)]
        gone = [path for path in folders if (hour := path.rsplit("/", 1)[-1]).isdigit() and int(hour) < now]
        for path in gone:
            self._fs.rm(path, recursive=True)
        return len(gone)


def _name(keep_s: float) -> str:
    hour = math.ceil((time.time() + keep_s) / _HOUR_S)
    return f"{hour}/{secrets.token_hex(16)}"
