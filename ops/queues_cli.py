"""`jarvis queues`, `workers`, `parked` and `replay`: how the queues stand, and what must not be run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops import screen, tables
from ops.screen import note
from ops.server import DEFAULT_URL, After, AsJson, Url, server, show_answer, show_page

if TYPE_CHECKING:
    from ops.client import Client


def queues(
    watch_them: Annotated[bool, typer.Option("--watch", "-w", help="Show them anew every second.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show how each queue stands.

    Waiting jobs by lane, jobs in progress, live workers, and how long the oldest has waited.
    """
    with server(url, as_json) as client:
        if watch_them:
            _watch_queues(client, as_json)
        else:
            document = client.queues()
            show_answer(document, "\n".join(tables.queue_table(document)), as_json)


def _watch_queues(client: Client, as_json: bool, every_s: float = 1.0) -> None:
    with _refreshed(as_json) as show:
        try:
            while True:
                show(client.patiently(client.queues, note))
                time.sleep(every_s)
        except KeyboardInterrupt:
            return


def workers(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the live workers: their queue, slots, and the GPU each holds or how much of one.

    A worker that still loads its model or waits for a GPU is not among them; its log says what it waits for.
    """
    with server(url, as_json) as client:
        document = client.workers()
        show_answer(document, "\n".join(tables.worker_table(document)), as_json)


def parked(
    limit: Annotated[int | None, typer.Option(min=1, help="Longest list.")] = None,
    after: After = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List parked jobs.

    Those that killed their workers again and again, and entries that nobody could read.
    """
    with server(url, as_json) as client:
        page = client.parked(limit=limit, after=after)
    show_page(page, as_json, tables.PARKED_HEAD, tables.parked_row)


def replay(
    parked_id: Annotated[str, typer.Argument(metavar="ID", help="A parked job's id.")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Run a parked job again, as a new job, and print its id."""
    with server(url, as_json) as client:
        record = client.replay(parked_id)
    show_answer(record, str(record["id"]), as_json)


@contextmanager
def _refreshed(as_json: bool) -> Iterator[Any]:
    """Show a document again and again: over itself in a terminal, one after another elsewhere."""
    if as_json or not screen.in_terminal():
        yield lambda document: show_answer(document, "\n".join(tables.queue_table(document)), as_json)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(""), auto_refresh=False) as live:
        yield lambda document: live.update(Text("\n".join(tables.queue_table(document))), refresh=True)
