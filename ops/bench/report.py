"""Result files to markdown: `python -m ops.bench report FILE...` prints every table of the benchmarks page.

With `--into PAGE` the sections stand in the page between two marks, in place of what stood there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.bench import figures, machine
from ops.bench.servers import BenchFailed

#: (field, title, decimals)
Column = tuple[str, str, int]
QUEUE: tuple[Column, ...] = (
    ("jobs_s", "no-op jobs/s", 0),
    ("p50", "idle p50 ms", 2),
    ("p99", "idle p99 ms", 2),
    ("enq_single", "submit 1-by-1 /s", 0),
    ("enq_batch", "submit batch /s", 0),
    ("cmds", "commands/job", 1),
    ("reads", "reads/job", 2),
    ("redis_us", "redis CPU µs/job", 0),
    ("worker_us", "worker CPU µs/job", 0),
    ("redis_percent", "redis CPU %", 0),
)
IDLE: tuple[Column, ...] = (
    ("workers", "idle workers", 0),
    ("commands_s", "commands/s", 1),
    ("worker_cpu_percent", "workers' CPU %", 1),
    ("redis_cpu_percent", "redis CPU %", 1),
)
GENERATION: tuple[Column, ...] = (
    ("tokens_s", "tokens/s, whole answers", 0),
    ("stream_tokens_s", "tokens/s, streams", 0),
    ("stream_first_ms", "first token p50 ms, all streams", 0),
    ("stream_gap_ms", "between tokens p50 ms", 1),
    ("stream_gap_p99_ms", "p99 ms", 1),
    ("first_token_ms", "first token p50 ms, idle", 1),
    ("first_token_p99_ms", "p99 ms", 1),
)
EMBEDDING: tuple[Column, ...] = (
    ("texts_s", "texts/s", 0),
    ("seconds", "seconds", 2),
    ("engine_ms", "engine CPU ms/text", 2),
    ("web_ms", "web CPU ms/text", 2),
    ("redis_ms", "redis CPU ms/text", 2),
    ("client_ms", "client CPU ms/text", 2),
    ("rss_mib", "RSS MiB", 0),
    ("cosine", "least cosine to float32", 6),
    ("ndcg", "nDCG@10", 3),
)

TRANSCRIPTION: tuple[Column, ...] = (
    ("speed", "x real time", 1),
    ("seconds", "seconds", 2),
    ("run_s", "of them in the worker", 2),
    ("clip_begun_s", "5 s clip behind it begun after s", 2),
    ("clip_done_s", "done after s", 2),
    ("rss_mib", "peak RSS MiB", 0),
)
BATCH: tuple[Column, ...] = (
    ("p50", "p50 ms", 1),
    ("p90", "p90 ms", 1),
    ("p99", "p99 ms", 1),
    ("max", "longest ms", 1),
    ("lines_s", "lines/s of the batch", 0),
)
COLUMNS = {"batch": BATCH, "generation": GENERATION, "embedding": EMBEDDING, "transcription": TRANSCRIPTION}


MARKS = "<!-- figures: python -m ops.bench report -->", "<!-- end of figures -->"


def main(documents: Sequence[Mapping[str, Any]], page: Path | None = None) -> None:
    """Print one section for each result, or put them into a page."""
    text = "\n\n".join(map(section, documents))
    if page is None:
        print(text)
        return
    page.write_text(replaced(page.read_text(encoding="utf-8"), text), encoding="utf-8")


def replaced(page: str, text: str) -> str:
    """The page with this text between its marks; BenchFailed when it has none."""
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise BenchFailed(f"the page has no line {MARKS[0]!r} with {MARKS[1]!r} after it")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def section(document: Mapping[str, Any]) -> str:
    """One result file as markdown: command, machine, tables, ratios."""
    parts = [
        f"### {document['benchmark']}",
        f"`{document['command']}`",
        "\n".join(f"{line.strip()}  " for line in machine.lines(document["machine"])).rstrip(),
        *_peers(document.get("peers") or {}),
        tables(document),
        f"`{figures.last_line(document['ratios'])}`",
    ]
    if document["errors"]:
        parts.append("Not measured: " + "; ".join(error.splitlines()[0] for error in document["errors"]) + ".")
    return "\n\n".join(parts)


def _peers(versions: Mapping[str, Any]) -> list[str]:
    # The harness tells of each environment all that matters in it; the peer itself is named like its environment.
    own = {name: found.get(name) if isinstance(found, dict) else found for name, found in versions.items()}
    told = ", ".join(f"{name} {number}" for name, number in own.items() if number)
    return [f"Peers: {told}."] if told else []


def as_table(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Any]], title: str = "") -> dict[str, Any]:
    """A table as it stands in a result file."""
    return {"title": title, "columns": columns, "rows": rows}


def show(document: Mapping[str, Any]) -> None:
    """Print the tables and, last, the figures that count."""
    print(f"\n{tables(document)}")
    for error in document["errors"]:
        print(f"error: {error.splitlines()[0]}")
    print(figures.last_line(document["ratios"]))


def tables(document: Mapping[str, Any]) -> str:
    """The tables of one result."""
    if "tables" in document:
        return "\n\n".join(map(_titled, document["tables"]))
    if document["benchmark"] == "queue":
        return queue_table(document)
    columns = COLUMNS[document["benchmark"]]
    return table(document["medians"], columns, _spread(document["rounds"], columns[0][0]), columns[0][1])


def queue_table(document: Mapping[str, Any]) -> str:
    """Throughput and latency of every row, and what idling costs."""
    out = table(document["medians"], QUEUE, _spread(document["rounds"], "jobs_s"), "jobs/s")
    parts = [out, *([table(document["idle"], IDLE)] if document["idle"] else [])]
    return "\n\n".join([*parts, *map(_titled, document.get("profile", {}).get("tables", []))])


def table(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[Column],
    spread: Mapping[str, str] | None = None,
    what: str = "",
) -> str:
    """A markdown table; a figure that is not there is a dash."""
    titles = ["", *(title for _, title, _ in columns), *([f"min-max {what}"] if spread else [])]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for name, row in rows.items():
        cells = [name, *(_cell(row.get(field), decimals) for field, _, decimals in columns)]
        lines.append("| " + " | ".join([*cells, *([spread.get(name, "-")] if spread else [])]) + " |")
    return "\n".join(lines)


def _titled(one: Mapping[str, Any]) -> str:
    text = table(one["rows"], one["columns"])
    return f"{one['title']}:\n\n{text}" if one["title"] else text


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"


def _spread(rounds: Sequence[Mapping[str, Mapping[str, Any]]], field: str) -> dict[str, str]:
    found: dict[str, list[float]] = {}
    for one in rounds:
        for name, row in one.items():
            if row.get(field) is not None:
                found.setdefault(name, []).append(row[field])
    return {name: f"{min(values):,.0f}-{max(values):,.0f}" for name, values in found.items()}
