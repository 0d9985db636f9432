"""How the command line shows a job's events: in a terminal, in a pipe, as JSON.

What was asked for goes to stdout and nothing else does: states, notices and spinners go to stderr. Text from
a server or a model reaches a terminal without control characters, since those could do anything to it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import typer

from common.states import TERMINAL
from ops.tables import printable, seconds, waiting_words

if TYPE_CHECKING:
    from rich.status import Status

    from ops.client import Event, Json

LOOK_EVERY_S = 1.0  # how often a waiting job's place in the queue is asked for


class Plain:
    """The answer on stdout as it comes, a line per state on stderr."""

    def __init__(self) -> None:
        self.wrote = False
        self._mid_line = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_line()

    def event(self, event: Event) -> None:
        """Show one event."""
        if event.event in ("token", "segment"):
            self.text(str(event.data.get("text", "")))
        elif event.event == "progress":
            self.progress(event.data)
        elif event.status is not None and not event.last:
            self.state(event.status, event.data)

    def text(self, text: str) -> None:
        """Show a piece of the answer."""
        if text:
            write(text)
            self.wrote, self._mid_line = True, not text.endswith("\n")

    def state(self, status: str, data: Json) -> None:
        """Show where the job stands."""
        again = " again; the answer will go on from here" if self.wrote and status == "queued" else ""
        self.note(f"{status.replace('_', ' ')}{again}")

    def progress(self, data: Json) -> None:
        """Show how far the job is."""

    def note(self, text: str) -> None:
        """Say something beside the answer, which stays as the model wrote it."""
        note(text)

    def end_line(self) -> None:
        """End the line of the answer, if one has begun."""
        if self._mid_line:
            self._mid_line = False
            write("\n")


class Terminal(Plain):
    """A live line with the job's place and why it waits, until the answer begins: that is plain text."""

    def __init__(self, look: Callable[[], Json]) -> None:
        super().__init__()
        self._look = look
        self._since = time.monotonic()
        self._words = "asking"
        self._progress = ""
        self._status: Status | None = None
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.status import Status
        from rich.text import Text

        self._render = Text
        self._status = Status(Text(self._words), console=Console(stderr=True))
        self._status.start()
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        super().__exit__()

    def text(self, text: str) -> None:
        """Show a piece of the answer, in place of the live line."""
        if text:
            self.stop()
        super().text(text)

    def state(self, status: str, data: Json) -> None:
        """Show where the job stands."""
        if self.wrote:
            super().state(status, data)
        else:
            self._say(waiting_words({**data, "status": status}))

    def progress(self, data: Json) -> None:
        """Show how far the job is."""
        self._progress = ", ".join(f"{name} {value}" for name, value in data.items())
        self._say(self._progress)

    def note(self, text: str) -> None:
        """Say something on a line of its own."""
        super().note(f"\n{text}" if self._mid_line else text)

    def _say(self, words: str) -> None:
        self._words = printable(words)
        status = self._status  # the other thread may take it away
        if status is not None:
            status.update(self._render(f"{self._words} · {seconds(time.monotonic() - self._since)}"))

    def _keep_looking(self) -> None:
        from ops.client import NoServer, Refused

        while not self._over.wait(LOOK_EVERY_S):
            try:
                record = self._look()
            except (NoServer, Refused):
                continue  # the follower meets the same and says so
            if not ended(record.get("status")):
                self._say(self._progress or waiting_words(record))

    def stop(self) -> None:
        """End the live line."""
        self._over.set()
        if self._status is not None:
            self._status.stop()
            self._status = None


class Lines(Plain):
    """One JSON document per event on stdout."""

    def event(self, event: Event) -> None:
        """Print one event."""
        print_json({"seq": event.seq, "event": event.event, "data": event.data})


def in_terminal() -> bool:
    """Whether a person watches: both outputs go to a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def write(text: str) -> None:
    """Write a piece of an answer to stdout at once."""
    typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def say(text: str) -> None:
    """Print what was asked for."""
    write(f"{text}\n")


def note(text: str) -> None:
    """Say something on stderr."""
    typer.echo(printable(text), err=True)


def print_json(document: Any) -> None:
    """Print a document as one line of JSON."""
    typer.echo(json.dumps(document, ensure_ascii=False))


def ended(status: object) -> bool:
    """Whether a job in this state will not change any more."""
    return status in TERMINAL
