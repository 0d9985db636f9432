"""What all commands that call a server share: where it is, its key, how answers are shown and how refusals end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ops import tables
from ops.screen import note, print_json, say

if TYPE_CHECKING:
    from ops.client import Client, Json

DEFAULT_URL = "http://127.0.0.1:8000"
NOT_COMPLETED, USAGE, NO_SERVER, INTERRUPTED = 1, 2, 3, 130


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")) or not url.partition("://")[2].strip("/"):
        raise typer.BadParameter(f"{url!r} is not an http:// or https:// address")
    return url


Url = Annotated[
    str,
    typer.Option("--url", envvar="JARVIS_URL", callback=_checked_url, help="Where Jarvis answers.", metavar="URL"),
]
After = Annotated[str | None, typer.Option(help="Where the page before ended.", metavar="CURSOR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AnyClient = TypeVar("AnyClient", bound="Client")


@contextmanager
def connected(kind: type[AnyClient], url: str, as_json: bool) -> Iterator[AnyClient]:
    """A client of the server; when that is not there or refuses, the command says so and ends."""
    from ops.client import NoServer, Refused

    try:
        with kind(url) as client:
            yield client
    except NoServer as error:
        note(str(error))
        raise typer.Exit(NO_SERVER) from None
    except Refused as error:
        note(json.dumps(error.problem, ensure_ascii=False) if as_json else str(error))
        if error.status == 401:
            note("keys: JARVIS_API_KEY is sent if it is set; `jarvis keys create` makes one")
        raise typer.Exit(NOT_COMPLETED) from None


def server(url: str, as_json: bool) -> AbstractContextManager[Client]:
    """The same with a client of jobs and queues."""
    from ops.client import Client

    return connected(Client, url, as_json)


def show_answer(document: Json, words: str, as_json: bool) -> None:
    """An answer: as JSON, or in words."""
    if as_json:
        print_json(document)
    else:
        say(words)


def show_page(page: Json, as_json: bool, head: tuple[str, ...], row: Callable[[Json], list[Any]]) -> None:
    """A page of a list as a table, and how to go on."""
    rows = [row(entry) for entry in page.get("data") or []]
    show_answer(page, "\n".join(tables.table(head, rows)), as_json)
    if page.get("next") and not as_json:
        note(f"more: --after {page['next']}")
