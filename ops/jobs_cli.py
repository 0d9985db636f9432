"""`jarvis submit`, `transcribe`, `watch`, `result` and the rest: one job from its submit to its result."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops import screen, tables
from ops.request import ascii_key, given, job_input, sendable, texts_by_name, values_by_name
from ops.screen import note, print_json
from ops.server import (
    DEFAULT_URL,
    INTERRUPTED,
    NOT_COMPLETED,
    After,
    AsJson,
    Url,
    server,
    show_answer,
    show_page,
)

if TYPE_CHECKING:
    from ops.client import Client, Json

DEFAULT_MODELS = {"generation": "demo", "embedding": "minilm"}


class Lane(StrEnum):
    """Priorities, as they are named on the wire."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id.")]
Patience = Annotated[float, typer.Option(min=0, help="How long a lost server is waited for.", metavar="SECONDS")]


def submit(
    text: Annotated[
        list[str] | None, typer.Argument(help="The prompt (its words are joined), or texts to embed.")
    ] = None,
    kind: Annotated[str, typer.Option(help="generation or embedding.")] = "generation",
    model: Annotated[str | None, typer.Option(help="Model alias.  [default: demo; minilm for embedding]")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads it from stdin.")] = None,
    messages: Annotated[
        str | None, typer.Option(help="A JSON file of chat messages; - is stdin.", metavar="FILE")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always picks the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="Any other parameter.", metavar="KEY=VALUE")] = None,
    priority: Annotated[Lane | None, typer.Option(help="Which lane it waits in.")] = None,
    delay_s: Annotated[float | None, typer.Option("--delay-s", help="Start no sooner than this.")] = None,
    ttl_s: Annotated[float | None, typer.Option("--ttl-s", help="Expire after this, finished or not.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout-s", help="Longest running time.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries before it counts as failed.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose job this is; users get equal turns.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Kept with the job.", metavar="KEY=VALUE")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key never makes a second job.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Show the answer while it is made.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Print the result when it is there.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit a job and print its id.

    jarvis submit -w What is a lease? · jarvis submit --kind embedding "one text" "another"
    """
    params = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop or None,
        **values_by_name(param),
    }
    body: dict[str, Any] = {
        "kind": kind,
        "model": model or DEFAULT_MODELS.get(kind, "demo"),
        "input": job_input(kind, text or [], prompt, messages),
        "params": given(params),
        "priority": priority,
        "delay_s": delay_s,
        "ttl_s": ttl_s,
        "timeout_s": timeout_s,
        "max_attempts": max_attempts,
        "user": user,
        "metadata": texts_by_name(metadata) or None,
    }
    with server(url, as_json) as client:
        record = client.submit(sendable(given(body)), ascii_key(idempotency_key))
        _submitted(client, record, watch_it=watch_it, wait=wait, as_json=as_json)


def transcribe(
    file: Annotated[Path, typer.Argument(help="The recording, or a film.", exists=True, dir_okay=False, readable=True)],
    model: Annotated[str, typer.Option(help="Model alias.")] = "whisper",
    language: Annotated[str | None, typer.Option(help="Code of the language spoken; heard if left out.")] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Write it in English.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Names and style to expect.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="text, srt, vtt or verbose_json.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="Any other parameter.", metavar="KEY=VALUE")] = None,
    priority: Annotated[Lane | None, typer.Option(help="Which lane it waits in.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout-s", help="Longest running time.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose job this is; users get equal turns.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key never makes a second job.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Show the text while it is heard.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Print the result when it is there.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit a recording and print the job's id.

    jarvis transcribe -w talk.mp3 · jarvis transcribe --wait --format srt film.mp4 > film.srt
    """
    task = "translate" if translate else None
    params = {"language": language, "task": task, "prompt": prompt, "response_format": form, **values_by_name(param)}
    about = {"priority": priority, "timeout_s": timeout_s, "user": user}
    body = {"kind": "transcription", "model": model, "params": given(params), **about}
    with server(url, as_json) as client:
        record = client.submit(sendable(given(body)), ascii_key(idempotency_key), file)
        if wait and not watch_it:
            note(str(record["id"]))  # beside the text, which may go to a file
            raise typer.Exit(_wait(client, str(record["id"]), as_json=as_json))
        _submitted(client, record, watch_it=watch_it, wait=False, as_json=as_json)


def _submitted(client: Client, record: Json, *, watch_it: bool, wait: bool, as_json: bool) -> None:
    job_id = str(record["id"])
    if watch_it:
        note(job_id)
        raise typer.Exit(_watch(client, job_id, as_json=as_json))
    if not wait:
        return show_answer(record, job_id, as_json)
    if not as_json:
        typer.echo(job_id)
    raise typer.Exit(_wait(client, job_id, as_json=as_json))


def watch(
    job_id: JobId,
    after: Annotated[int, typer.Option(min=0, help="Show what follows this event number.", metavar="SEQ")] = 0,
    patience_s: Patience = 600.0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end.

    Ctrl-C leaves the job running. A lost connection or server is waited for, and no event is shown twice or
    left out. --json prints one event per line.
    """
    with server(url, as_json) as client:
        raise typer.Exit(_watch(client, job_id, as_json=as_json, after=after, patience_s=patience_s))


def _watch(client: Client, job_id: str, *, as_json: bool, after: int = 0, patience_s: float = 600.0) -> int:
    try:
        with _screen(client, job_id, as_json) as shown:
            status = None
            for event in client.follow(job_id, after, shown.note, patience_s):
                shown.event(event)
                status = event.status or status
            if as_json and screen.ended(status):
                return _exit_code(status)
            record = client.patiently(lambda: client.record(job_id), shown.note, patience_s)
            if not as_json:
                _end(client, shown, record, whole=after == 0)
            return _exit_code(record.get("status"))
    except KeyboardInterrupt:
        note(f"\nThe job goes on. Come back with: jarvis watch {job_id}{_elsewhere(client)}")
        return INTERRUPTED


def _end(client: Client, shown: screen.Plain, record: Json, *, whole: bool) -> None:
    # A job without token events (an embedding; an answer whose events are gone) is shown by its result.
    if record.get("status") in ("completed", "incomplete") and whole and not shown.wrote:
        result = client.patiently(lambda: client.result(str(record["id"])), shown.note)
        shown.text(tables.result_text(result or {}))
    shown.end_line()
    if isinstance(shown, screen.Terminal):
        shown.stop()
    note(tables.end_words(record))


def _wait(client: Client, job_id: str, *, as_json: bool) -> int:
    """Wait for a job's end and print its result, or with --json its record with the result inside."""
    _until_its_end(client, job_id)
    record = client.patiently(lambda: client.record(job_id), note)
    has_result = record.get("status") in ("completed", "incomplete")
    result = client.patiently(lambda: client.result(job_id), note) if has_result else None
    if as_json:
        print_json({**record, "result": result})
    elif result is not None:
        screen.say(tables.result_text(result))
    if not as_json and record.get("status") != "completed":
        note(tables.end_words(record))
    return _exit_code(record.get("status"))


def _until_its_end(client: Client, job_id: str) -> None:
    try:
        for _ in client.follow(job_id, notice=note):
            pass
    except KeyboardInterrupt:
        note(f"\nThe job goes on. Come back with: jarvis result --wait {job_id}{_elsewhere(client)}")
        raise typer.Exit(INTERRUPTED) from None


def _elsewhere(client: Client) -> str:
    return "" if client.url == DEFAULT_URL else f" --url {client.url}"


def status(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    with server(url, as_json) as client:
        record = client.record(job_id)
    known = [(name, str(value)) for name, value in tables.facts(record) if value]
    show_answer(record, "\n".join(f"{name:<10} {value}" for name, value in known), as_json)


def result(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for it.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print a job's result.

    That is its text, or one line of numbers per embedded text.
    """
    with server(url, as_json) as client:
        if wait:
            _until_its_end(client, job_id)
        document = client.result(job_id)
        if document is None or document.get("output") is None:
            note(f"no result: {job_id} is {tables.end_words(client.record(job_id))}")
            raise typer.Exit(NOT_COMPLETED)
    show_answer(document, tables.result_text(document), as_json)


def cancel(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Stop a job, waiting or running."""
    with server(url, as_json) as client:
        record = client.cancel(job_id)
    show_answer(record, f"{job_id} {record.get('status')}", as_json)


def retry(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Run a finished job again, as a new job, and print its id."""
    with server(url, as_json) as client:
        record = client.retry(job_id)
    show_answer(record, str(record["id"]), as_json)


def list_jobs(
    state: Annotated[str | None, typer.Option("--status", help="queued, in_progress, completed, …")] = None,
    kind: Annotated[str | None, typer.Option(help="generation, embedding or transcription.")] = None,
    model: Annotated[str | None, typer.Option(help="Model alias.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose jobs.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Longest list.")] = None,
    after: After = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with server(url, as_json) as client:
        page = client.jobs(status=state, kind=kind, model=model, user=user, limit=limit, after=after)
    show_page(page, as_json, tables.JOB_HEAD, tables.job_row)


def _screen(client: Client, job_id: str, as_json: bool) -> screen.Plain:
    if as_json:
        return screen.Lines()
    return screen.Terminal(lambda: client.record(job_id)) if screen.in_terminal() else screen.Plain()


def _exit_code(state: object) -> int:
    return 0 if state == "completed" else NOT_COMPLETED
