"""`jarvis batch`: files of requests that run when there is room."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops import tables
from ops.request import texts_by_name
from ops.screen import note, print_json, say
from ops.server import DEFAULT_URL, INTERRUPTED, NOT_COMPLETED, USAGE, AsJson, Url, connected, show_answer

if TYPE_CHECKING:
    from ops.batch_client import BatchClient
    from ops.client import Json

HEAD = ("ID", "STATUS", "ENDPOINT", "LINES", "COMPLETED", "FAILED", "AGE")

app = typer.Typer(
    help="Run files of requests, one JSON object a line, when there is room.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
BatchId = Annotated[str, typer.Argument(metavar="ID", help="A batch's id.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A JSONL file.", exists=True, dir_okay=False, readable=True)],
    endpoint: Annotated[str | None, typer.Option(help="What the lines call.  [default: the first one's url]")] = None,
    window: Annotated[str, typer.Option(help="When it must be done: 24h, 30m, 7d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(help="Kept with the batch.", metavar="KEY=VALUE")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and show how it gets on.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Upload a file, make a batch of it, and print its id."""
    called = endpoint or _endpoint_of(file)
    with _server(url, as_json) as client:
        batch = client.submit_batch(file, called, window, texts_by_name(metadata) or None)
        if not wait:
            return show_answer(batch, str(batch["id"]), as_json)
        if not as_json:
            typer.echo(batch["id"])
        raise typer.Exit(_watch(client, str(batch["id"]), as_json))


@app.command("list")
def list_batches(
    limit: Annotated[int | None, typer.Option(min=1, max=100, help="Longest list.")] = None,
    after: Annotated[str | None, typer.Option(help="Id of the last batch of the page before.", metavar="ID")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first."""
    with _server(url, as_json) as client:
        page = client.batches(after, limit)
    show_answer(page, "\n".join(tables.table(HEAD, [_row(batch) for batch in page.get("data") or []])), as_json)
    if page.get("has_more") and not as_json:
        note(f"more: --after {page['last_id']}")


@app.command()
def status(
    batch_id: BatchId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew until it is over.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show where a batch stands.

    Exit code 1 when it is over and did not complete.
    """
    with _server(url, as_json) as client:
        if watch:
            raise typer.Exit(_watch(client, batch_id, as_json))
        batch = client.batch(batch_id)
    show_answer(batch, _words(batch), as_json)
    if batch.get("status") in ("failed", "expired", "cancelled"):
        raise typer.Exit(NOT_COMPLETED)


@app.command()
def cancel(batch_id: BatchId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Stop a batch. What is done by then is in its output."""
    with _server(url, as_json) as client:
        batch = client.cancel_batch(batch_id)
    show_answer(batch, f"{batch_id} {batch.get('status')}", as_json)


@app.command()
def output(
    batch_id: BatchId,
    errors: Annotated[bool, typer.Option("--errors", help="The lines that failed, in place of the answers.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print a batch's answers, one JSON object a line, in the order of the input."""
    with _server(url, as_json=False) as client:
        batch = client.batch(batch_id)
        file_id = batch.get("error_file_id" if errors else "output_file_id")
        if file_id is None:
            note(f"no such file: {_words(batch)}")
            raise typer.Exit(NOT_COMPLETED)
        for piece in client.content(str(file_id)):
            sys.stdout.buffer.write(piece)


def _endpoint_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            first = next((line for line in opened if line.strip()), b"{}")
        return str(json.loads(first)["url"])
    except (ValueError, KeyError, TypeError):
        note(f"{file}: its first line has no url; say which with --endpoint")
        raise typer.Exit(USAGE) from None


def _watch(client: BatchClient, batch_id: str, as_json: bool) -> int:
    batch: Json = {}
    try:
        for batch in client.batch_until_its_end(batch_id, note):
            if as_json:
                print_json(batch)
            else:
                note(_line(batch))
    except KeyboardInterrupt:
        note(f"\nThe batch goes on. Come back with: jarvis batch status --watch {batch_id}")
        return INTERRUPTED
    if not as_json:
        say(_words(batch))
    return 0 if batch.get("status") == "completed" else NOT_COMPLETED


def _line(batch: Json) -> str:
    counts = batch.get("request_counts") or {}
    done = f"{counts.get('completed', 0)} of {counts.get('total', 0)} completed"
    return f"{batch.get('status')}: {done}, {counts.get('failed', 0)} failed"


def _words(batch: Json) -> str:
    facts: list[tuple[str, Any]] = [("batch", batch.get("id")), ("status", _line(batch))]
    facts += [(name, batch.get(name)) for name in ("endpoint", "model", "output_file_id", "error_file_id")]
    for error in (batch.get("errors") or {}).get("data") or []:
        facts.append(("error", f"line {error.get('line') or '-'}: {error.get('code')}: {error.get('message')}"))
    return "\n".join(f"{name:<15} {value}" for name, value in facts if value)


def _row(batch: Json) -> list[Any]:
    counts = batch.get("request_counts") or {}
    numbers = [counts.get(name, 0) for name in ("total", "completed", "failed")]
    return [batch.get("id"), batch.get("status"), batch.get("endpoint"), *numbers, tables.age(batch.get("created_at"))]


def _server(url: str, as_json: bool) -> AbstractContextManager[BatchClient]:
    from ops.batch_client import BatchClient

    return connected(BatchClient, url, as_json)
