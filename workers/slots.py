"""The table of held leases that a worker shares with its beat: a small file in memory, one row per slot.

The worker writes a row when it claims and clears it when it has committed; the beat reads the rows when it
renews. No message passes between them per job. A row read half-written names no lease that exists, and is
renewed a beat later.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from typing import BinaryIO, NamedTuple

_ROW = struct.Struct("64sdd")


class Held(NamedTuple):
    """One lease: its name, when it was taken and until when its job may run (both CLOCK_MONOTONIC, seconds)."""

    lease: str
    since: float
    deadline: float


class SlotTable:
    """Rows of held leases."""

    def __init__(self, file: BinaryIO, slots: int) -> None:
        self.file = file
        self.slots = slots
        self._map = mmap.mmap(file.fileno(), slots * _ROW.size)
        self._free = list(range(slots))

    @classmethod
    def create(cls, slots: int) -> SlotTable:
        """A new, empty table."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the table
        file.truncate(slots * _ROW.size)
        return cls(file, slots)

    def hold(self, lease: str, since: float, deadline: float) -> int:
        """Write a lease into a free row; returns the row."""
        row = self._free.pop()
        _ROW.pack_into(self._map, row * _ROW.size, lease.encode(), since, deadline)
        return row

    def clear(self, row: int) -> None:
        """Free a row."""
        _ROW.pack_into(self._map, row * _ROW.size, b"", 0.0, 0.0)
        self._free.append(row)

    def held(self) -> list[Held]:
        """The leases in the table."""
        rows = (_ROW.unpack_from(self._map, row * _ROW.size) for row in range(self.slots))
        return [Held(name.rstrip(b"\0").decode("ascii", "replace"), *times) for name, *times in rows if name[0]]

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        self.file.close()
