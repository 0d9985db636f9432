"""How much memory processes and Redis use over a run, and by how much that grew after they had warmed up."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.faults.formation import Kept


class Growth(NamedTuple):
    """Memory of one process after its warm-up and at the end, in bytes."""

    name: str
    pid: int
    seconds: float  # it was watched for, from the end of its warm-up
    before: float
    after: float

    @property
    def percent(self) -> float:
        """How much more it is."""
        return 100 * (self.after / self.before - 1)


Samples = list[tuple[float, int]]


def rss(pid: int) -> int | None:
    """Resident bytes of a process, None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    except (OSError, StopIteration):  # a process that has ended has no such line
        return None


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Sizes:
    """Samples by process; a process that is started again is another one."""

    def __init__(self) -> None:
        self.samples: defaultdict[tuple[str, int], Samples] = defaultdict(list)

    def look(self, kept: list[Kept], now: float) -> None:
        """Take a sample of each process and of its beat."""
        for one in kept:
            if one.alive:
                self._note(one.name, one.pid, now)
                for child in children(one.pid):
                    self._note(f"{one.name}/beat", child, now)

    def _note(self, name: str, pid: int, now: float) -> None:
        if size := rss(pid):
            self.samples[name, pid].append((now, size))

    def note(self, name: str, size: int, now: float) -> None:
        """A sample of something that is no process of ours."""
        self.samples[name, 0].append((now, size))

    def growths(self, warm_s: float, least_s: float) -> list[Growth]:
        """Of all that lived long enough, the largest growth first."""
        found = [growth(name, pid, samples, warm_s, least_s) for (name, pid), samples in self.samples.items()]
        return sorted((one for one in found if one is not None), key=lambda one: -one.percent)


def growth(name: str, pid: int, samples: Samples, warm_s: float, least_s: float) -> Growth | None:
    """The median of the first quarter after `warm_s` against that of the last; None for a life too short."""
    begins, ends = samples[0][0] + warm_s, samples[-1][0]
    if ends - begins < least_s:
        return None
    quarter = (ends - begins) / 4
    first = [size for at, size in samples if begins <= at <= begins + quarter]
    last = [size for at, size in samples if at >= ends - quarter]
    if not first or not last:
        return None
    return Growth(name, pid, ends - begins, statistics.median(first), statistics.median(last))
