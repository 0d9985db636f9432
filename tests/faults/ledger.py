"""A file outside the system to which every job function appends a line when it starts and when it ends.

It is what runs are counted by: a line is one write of a file opened for appending, so a SIGKILL loses at most
the line that was not written yet, and lines of many processes do not mix.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "JARVIS_TEST_LEDGER"


class Line(NamedTuple):
    """One start or end of a run."""

    what: str
    job: str
    pid: int
    claims: int
    at: float


def note(what: str, job: Any) -> None:
    """Append a line about a claimed job to the ledger that the environment names."""
    line = json.dumps([what, job.id, os.getpid(), job.claims, time.time()])
    with Path(os.environ[VARIABLE]).open("a") as ledger:
        ledger.write(line + "\n")


class Ledger:
    """The reader's side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, what: str | None = None, job: str | None = None) -> list[Line]:
        """What was noted, oldest first."""
        whole = self.path.read_text().rpartition("\n")[0]  # the last one may be half there while it is written
        lines = [Line(*json.loads(text)) for text in whole.splitlines()]
        return [line for line in lines if what in (None, line.what) and job in (None, line.job)]

    def starts(self, job: str | None = None) -> list[Line]:
        """The starts of runs."""
        return self.lines("start", job)

    def ends(self, job: str | None = None) -> list[Line]:
        """The ends of runs that were not interrupted."""
        return self.lines("end", job)
