"""The `jarvis` command: submit jobs, watch them, look at the queues, check an installation.

What was asked for goes to stdout, everything else to stderr; the exit code says how it went. What is heavy
to import is imported by the command that needs it, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import TextIOWrapper
from typing import NoReturn

import typer

from common.errors import SettingsInvalid
from ops import batch_cli, jobs_cli, keys_cli, models_cli, plan_cli, queues_cli, usage_cli, webhook_cli
from ops.screen import note, print_json
from ops.server import NOT_COMPLETED, AsJson

EXIT_CODES = """Exit codes: 0 ok; 1 the job did not complete, the server refused, or a check failed;
2 the command line is wrong; 3 no Jarvis answers; 130 interrupted (the job goes on)."""

app = typer.Typer(
    help="Submit jobs to Jarvis, watch them, look at its queues.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich takes longer to import than the command to run
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "submit": jobs_cli.submit,
    "transcribe": jobs_cli.transcribe,
    "watch": jobs_cli.watch,
    "status": jobs_cli.status,
    "result": jobs_cli.result,
    "cancel": jobs_cli.cancel,
    "retry": jobs_cli.retry,
    "list": jobs_cli.list_jobs,
    "queues": queues_cli.queues,
    "workers": queues_cli.workers,
    "usage": usage_cli.usage,
    "parked": queues_cli.parked,
    "replay": queues_cli.replay,
    "plan": plan_cli.plan,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(batch_cli.app, name="batch")
app.add_typer(keys_cli.app, name="keys")
app.add_typer(models_cli.app, name="models")
app.add_typer(webhook_cli.app, name="webhooks")
app.add_typer(plan_cli.trace_app, name="trace")

#: Everything behind the command's name is passed on.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def check(as_json: AsJson = False) -> None:
    """Check settings, Redis, catalogue and weights.

    Prints the effective settings (passwords masked) and what was found; 1 names what is wrong.
    """
    from common.settings import load_settings
    from ops.check import examine

    try:
        settings = load_settings()
    except SettingsInvalid as error:
        note(str(error))
        raise typer.Exit(NOT_COMPLETED) from None
    findings = examine(settings)
    wrong = [finding for finding in findings if finding.level == "wrong"]
    if as_json:
        print_json({"ok": not wrong, "settings": settings.masked(), "findings": [asdict(one) for one in findings]})
    else:
        for name, value in settings.masked().items():
            typer.echo(f"{name} = {value}")
        typer.echo()
        for finding in findings:
            typer.echo(str(finding))
    if wrong:
        note(f"wrong: {', '.join(f'{finding.key} = {finding.value}' for finding in wrong)}")
        raise typer.Exit(NOT_COMPLETED)


@app.command(context_settings=PASS_ON)
def bench(context: typer.Context) -> None:
    """Measure: runs python -m ops.bench.

    Everything after `bench` is its own, --help too.
    """
    _become("ops.bench", context.args)


@app.command(context_settings=PASS_ON)
def up(context: typer.Context) -> None:
    """Start everything: runs python -m ops.supervise.

    Everything after `up` is its own, --help too.
    """
    _become("ops.supervise", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    # The same process, not a child: signals, terminal and exit code are the module's own.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a lone surrogate must not end the command
    app(prog_name="jarvis")


if __name__ == "__main__":
    main()
