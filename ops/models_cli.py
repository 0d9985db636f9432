"""`jarvis models`: the catalogue's models, checked, listed, fetched, measured.

Engines are asked in a process of their own (`python -m workers.models`), so that this command stays light.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from common.errors import CatalogueInvalid, JarvisError, SettingsInvalid, StoreUnavailable
from ops import tables
from ops.screen import note, print_json, say

if TYPE_CHECKING:
    from common.catalogue import Catalogue, Model
    from common.settings import Settings

WRONG = 1
ELSEWHERE = ("openai", "fake")  # engines whose models have no weights here

app = typer.Typer(
    help="Look at the models of the catalogue.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Aliases = Annotated[list[str] | None, typer.Argument(metavar="[ALIAS]...", help="Which models (default: all).")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="A model's alias.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LIST_HEAD = ("ALIAS", "KIND", "ENGINE", "WEIGHTS", "PRESET", "QUANTIZATION", "ON DISK", "WORKERS")
BENCH_HEAD = ("ALIAS", "START S", "AT ONCE", "TOKENS/S", "TTFT P50 MS", "TEXTS/S", "MEMORY MIB", "VRAM MIB")


@app.command()
def check(alias: Aliases = None, as_json: AsJson = False) -> None:
    """Explain every mistake in the catalogue, by line; exit code 1 when there is one.

    Options are checked against the installed engines (vLLM's own names, types and quantization for this machine)
    without loading weights.
    """
    catalogue = _catalogue()
    problems = [problem for answer in _ask("check", alias or []) for problem in answer["problems"]]
    if as_json:
        print_json({"ok": not problems, "catalogue": str(catalogue.path), "problems": problems})
    else:
        for problem in problems:
            say(problem)
        if not problems:
            say(f"{catalogue.path}: {len(alias or catalogue.models)} models, nothing wrong")
    if problems:
        raise typer.Exit(WRONG)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models: their weights, what they take on disk, and how many workers serve each."""
    models = list(_catalogue().models.values())
    workers = _workers(models)
    rows = [_described(model, workers) for model in models]
    if as_json:
        print_json({"data": rows})
        return
    shown = ("alias", "kind", "engine", "weights", "preset", "quantization", "on_disk", "workers")
    say("\n".join(tables.table(LIST_HEAD, [[_cell(row[key]) for key in shown] for row in rows])))
    if workers is None:
        note("Redis does not answer, so nothing is known of workers")


@app.command()
def pull(alias: Alias) -> None:
    """Fetch a hub model's weights into the hub's cache, at the catalogue's revision."""
    from ops import model_weights

    model = _one(alias)
    if model.engine in ELSEWHERE or model.local:
        note(f"nothing to fetch: {alias} has {'no' if model.engine in ELSEWHERE else 'local'} weights")
        return
    try:
        folder, size = model_weights.fetch(model)
    except SettingsInvalid as error:
        _failed(error)
    say(f"{folder} ({model_weights.size_in_words(size)})")


@app.command()
def bench(alias: Aliases = None, as_json: AsJson = False) -> None:
    """Measure models for some seconds each, through their engines alone: no queue, no HTTP."""
    from ops.bench import machine

    for name in alias or []:
        _one(name)
    about = machine.describe()
    note("\n".join(machine.lines(about)))
    rows = []
    for name in alias or list(_catalogue().models):
        rows += list(_ask("bench", [name]))  # each in a process of its own: memory is one model's
    if as_json:
        print_json({"machine": about, "data": rows})
    else:
        names = ("start_s", "at_once", "tokens_s", "ttft_p50_ms", "texts_s", "memory_mib", "vram_mib")
        figures = [[row["alias"], *(_figure(row.get(name)) for name in names)] for row in rows]
        say("\n".join(tables.table(BENCH_HEAD, figures)))


def _catalogue() -> Catalogue:
    from common.catalogue import Catalogue
    from common.settings import load_settings

    try:
        return Catalogue.load(load_settings().catalogue)
    except SettingsInvalid as error:
        _failed(error)


def _one(alias: str) -> Model:
    catalogue = _catalogue()
    if alias not in catalogue.models:
        _failed(SettingsInvalid(f"{catalogue.path} has no model {alias!r}; it has: {', '.join(catalogue.models)}"))
    return catalogue.models[alias]


def _failed(error: JarvisError) -> NoReturn:
    for line in error.problems if isinstance(error, CatalogueInvalid) else [str(error)]:
        note(line)
    raise typer.Exit(WRONG) from None


def _ask(what: str, aliases: list[str]) -> Iterator[dict[str, Any]]:
    """The answers of `python -m workers.models`, one a model, as they come."""
    command = [sys.executable, "-m", "workers.models", what, *aliases]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            for line in process.stdout or ():
                answer = json.loads(line)
                if "error" in answer:
                    _failed(SettingsInvalid(answer["error"]))
                yield answer
        if process.returncode not in (0, WRONG):
            log.seek(0)
            note(log.read()[-4000:])
            _failed(SettingsInvalid(f"{' '.join(command[1:])} ended with exit code {process.returncode}"))


def _described(model: Model, workers: dict[str, int] | None) -> dict[str, Any]:
    from ops import model_weights

    found = model_weights.look_at(model)
    return {
        "alias": model.alias,
        "kind": model.kind,
        "engine": model.engine,
        "weights": model.weights + (f"@{model.revision}" if model.revision else ""),
        "preset": model.preset,
        "quantization": model.engine_options.get("quantization") or found.quantization,
        "on_disk": found.words,
        "bytes": found.size_bytes,
        "path": found.path,
        "workers": None if workers is None else workers[model.queue],
    }


def _workers(models: list[Model]) -> dict[str, int] | None:
    """Live workers by queue; None when Redis does not answer."""
    import asyncio

    from common.settings import load_settings

    try:
        return asyncio.run(_count_workers(load_settings(), [model.queue for model in models]))
    except (StoreUnavailable, OSError):
        return None


async def _count_workers(settings: Settings, queues: list[str]) -> dict[str, int]:
    from common.queue import Queue
    from common.results import Results

    client = await Queue.connect(settings)
    try:
        results = Results(client.redis, settings)
        return {queue: len(await results.workers(queue)) for queue in queues}
    finally:
        await client.close()


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
