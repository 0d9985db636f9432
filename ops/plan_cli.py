"""`jarvis plan` and `jarvis trace`: what would happen with more workers or other weights, from what has happened."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import InvalidField, JarvisError, SettingsInvalid
from ops import tables
from ops.keys_cli import span_s
from ops.screen import note
from ops.server import NO_SERVER, NOT_COMPLETED, USAGE, AsJson, show_answer

if TYPE_CHECKING:
    from ops.trace import Trace

USER_HEAD = ("USER", "JOBS", "WAIT P50", "P95")
QUEUE_HEAD = ("QUEUE", "WORKERS", "SLOTS", "IN USE")

trace_app = typer.Typer(
    help="Traces of what came, for `jarvis plan`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@trace_app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="The file to write; - is stdout.", metavar="FILE")] = Path("-"),
    since: Annotated[str, typer.Option(help="How far back: 24h, 7d.", metavar="TIME")] = "24h",
    most: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many jobs, the newest.")] = 100_000,
) -> None:
    """Write what came and ran, as it stands in Redis, as a trace. It names users and sizes, and no texts.

    jarvis trace export --since 7d --out week.jsonl
    """
    from ops import trace

    try:
        made = asyncio.run(_recorded(time.time() - span_s("--since", since), most))
    except (JarvisError, OSError) as error:
        note(str(error))
        raise typer.Exit(USAGE if isinstance(error, (InvalidField, SettingsInvalid)) else NO_SERVER) from None
    text = "".join(f"{line}\n" for line in trace.lines(made))
    if out == Path("-"):
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        note(f"{len(made.arrivals)} jobs in {out}")


async def _recorded(since: float, most: int) -> Trace:
    from common.queue import Queue
    from common.results import Results
    from common.settings import load_settings
    from ops.trace import recorded

    settings = load_settings()
    queue = await Queue.connect(settings)
    results = Results(queue.redis, settings)
    try:
        return await recorded(results, since, most)
    finally:
        await results.close()
        await queue.close()


def plan(
    trace: Annotated[
        Path, typer.Option(help="What came: `jarvis trace export` writes it.", exists=True, dir_okay=False)
    ],
    add_worker: Annotated[
        list[str] | None,
        typer.Option(help="More workers of a kind or a queue; may be repeated.", metavar="QUEUE=N"),
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="An owner's part against others'; may be repeated.", metavar="OWNER=W")
    ] = None,
    slots: Annotated[
        list[str] | None, typer.Option(help="Slots of a queue's workers; may be repeated.", metavar="QUEUE=N")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace through the queue's own scripts in simulated time: waits by user, use of the workers.

    With something changed, as it was and as it would be:
    jarvis plan --trace week.jsonl --add-worker generation=1 --weight team-a=2
    """
    try:
        document = asyncio.run(planned(trace, add_worker or [], weight or [], slots or []))
    except InvalidField as error:
        note(str(error))
        raise typer.Exit(USAGE) from None
    except (JarvisError, OSError) as error:
        note(str(error))
        raise typer.Exit(NOT_COMPLETED) from None
    show_answer(document, "\n".join(rows_of(document)), as_json)


async def planned(file: Path, add_worker: list[str], weight: list[str], slots: list[str]) -> dict[str, Any]:
    """The document: `before`, and `after` when something is changed."""
    from ops.plan import Simulation, private_redis, summary, workers_of
    from ops.trace import load

    trace = load(file)
    workers = workers_of(trace)
    for name, number in _pairs("--slots", slots, 1, 10_000):
        for queue in _queues("--slots", name, workers):
            workers[queue] = [int(number)] * len(workers[queue])
    more = {queue: list(each) for queue, each in workers.items()}
    for name, number in _pairs("--add-worker", add_worker, 1, 1000):
        for queue in _queues("--add-worker", name, more):
            more[queue] += [more[queue][0] if more[queue] else 8] * int(number)
    shares = dict(trace.shares)
    for owner, number in _pairs("--weight", weight, 0.01, 1000):
        kept = [text for text in shares.get(owner, []) if not text.startswith("weight=")]
        shares[owner] = [*kept, f"weight={number:g}"]
    async with private_redis() as client:
        document = {"before": summary(await Simulation(client, trace, workers).run())}
        if (more, shares) != (workers, trace.shares):
            trace.shares = shares
            document["after"] = summary(await Simulation(client, trace, more).run())
    return document


def _pairs(option: str, texts: list[str], least: float, most: float) -> list[tuple[str, float]]:
    pairs = []
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1
        whole = option == "--weight" or value == int(value)
        if not name or not least <= value <= most or not whole:
            raise InvalidField(option, text, f"NAME=NUMBER, of {least:g} to {most:g}")
        pairs.append((name, value))
    return pairs


def _queues(option: str, name: str, workers: dict[str, list[int]]) -> list[str]:
    found = [queue for queue in workers if name in (queue, queue.partition(":")[0])]
    if not found:
        raise InvalidField(option, name, f"a kind or a queue of the trace: {', '.join(workers)}")
    return found


def rows_of(document: dict[str, Any]) -> list[str]:
    """The document as two tables; what changes stands as `before → after`."""
    before, after = document["before"], document.get("after")
    users = [
        (
            user,
            one["jobs"],
            *(
                _change(_seconds(one[name]), after and _seconds(after["users"].get(user, {}).get(name)))
                for name in ("wait_p50_s", "wait_p95_s")
            ),
        )
        for user, one in before["users"].items()
    ]
    queues = [
        (
            queue,
            *(_change(one[name], after and after["queues"][queue][name]) for name in ("workers", "slots")),
            _change(f"{one['utilisation']:.0%}", after and f"{after['queues'][queue]['utilisation']:.0%}"),
        )
        for queue, one in before["queues"].items()
    ]
    return [*tables.table(USER_HEAD, users), "", *tables.table(QUEUE_HEAD, queues)]


def _change(before: object, after: object) -> str:
    return f"{before}" if not after or str(after) == str(before) else f"{before} → {after}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else tables.seconds(value)
