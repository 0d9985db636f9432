"""`jarvis usage`: what was used, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops import tables
from ops.server import DEFAULT_URL, AsJson, Url, server, show_answer

if TYPE_CHECKING:
    from ops.client import Json

OUTCOMES = ("completed", "incomplete", "failed", "cancelled", "expired")
COUNTED = ("prompt_tokens", "completion_tokens", "audio_seconds", "gpu_ms")
HEAD = ("JOBS", "FAILED", "PROMPT", "COMPLETION", "AUDIO S", "GPU S", "COST")
#: A cell that begins so would be a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

First = Annotated[str | None, typer.Option("--from", help="First day, UTC.  [default: 29 days before]", metavar="DAY")]
Last = Annotated[str | None, typer.Option("--to", help="Last day, itself included.  [default: today]", metavar="DAY")]
By = Annotated[str, typer.Option("--by", help="Told apart by these: day, model, api_key, owner.", metavar="NAMES")]
Owner = Annotated[str | None, typer.Option(help="Only this owner's.")]
Key = Annotated[str | None, typer.Option("--key", help="Only this API key's (its id).", metavar="ID")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV, with every number.")]


def usage(
    first: First = None,
    last: Last = None,
    by: By = "day,model",
    owner: Owner = None,
    key: Key = None,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what was used: jobs, tokens, seconds of audio, GPU time and cost, by day and model or as you say.

    jarvis usage --from 2026-11-01 --by api_key,model · jarvis usage --by day,owner --csv > usage.csv
    """
    asked = {"from": first, "to": last, "group_by": by, "owner": owner, "api_key": key}
    with server(url, as_json) as client:
        document = client.usage(**asked)
    words = csv_of(document).rstrip("\n") if as_csv else "\n".join(rows_of(document))
    show_answer(document, words, as_json)


def rows_of(document: Json) -> list[str]:
    """The usage as a table, its sum in the last row."""
    groups = list(document["group_by"])
    rows = [[one[name] or "-" for name in groups] + _figures(one) for one in document["data"]]
    rows.append((["total"] + [""] * (len(groups) - 1) if groups else []) + _figures(document["total"]))
    if not groups:
        rows = rows[:1]
    return tables.table([name.upper() for name in groups] + list(HEAD), rows)


def _figures(one: Json) -> list[Any]:
    cost = " ".join(f"{micros / 1e6:.4f} {currency}" for currency, micros in one["cost_micros"].items())
    jobs = sum(one["jobs"].values())
    tokens = one["prompt_tokens"], one["completion_tokens"]
    return [jobs, one["jobs"]["failed"], *tokens, one["audio_seconds"], f"{one['gpu_ms'] / 1000:.1f}", cost or "-"]


def csv_of(document: Json) -> str:
    """The usage as CSV: a column for each name and number, and for the cost in each currency."""
    groups = list(document["group_by"])
    currencies = sorted(document["total"]["cost_micros"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*groups, *OUTCOMES, *COUNTED, *(f"cost_micros_{currency}" for currency in currencies)])
    for one in document["data"]:
        names = [_cell(one[name] or "") for name in groups]
        jobs = [one["jobs"][name] for name in OUTCOMES]
        cost = [one["cost_micros"].get(currency, 0) for currency in currencies]
        writer.writerow([*names, *jobs, *(one[name] for name in COUNTED), *cost])
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
