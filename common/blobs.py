"""Inputs and results too large for Redis, kept in a folder (or whatever fsspec address is set) by reference.

A blob's name starts with the hour in which it may go, so that sweeping needs no index. A reference starts with
`@`, which no JSON value does.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time

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
        hour = math.ceil((time.time() + keep_s) / _HOUR_S)
        name = f"{hour}/{secrets.token_hex(16)}"
        await asyncio.to_thread(self._write, name, data)
        return f"@{name}".encode()

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
