"""Draws what was measured, for the README: throughput and latency beside the peers, and cost against backlog.

`python -m ops.bench draw FILE... --out ops/docs/queue.svg`. The same files give the same bytes. Its colours are
readable on a light and on a dark page, and nothing is told by colour alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

from ops.bench import figures
from ops.bench.servers import BenchFailed

OURS, THEIRS, INK, FAINT = "#2f81f7", "#8b949e", "#768390", "#8b949e55"
NAMES = {
    "ours": "Jarvis",
    "limit-tasks": "a bare loop, no queue",
    "bullmq": "BullMQ (Node)",
    "arq-tuned": "arq (tuned)",
    "saq": "SAQ",
    "streaq-uvloop": "streaQ",
    "dramatiq": "Dramatiq",
    "celery-threads": "Celery",
    "rq": "RQ",
}
BOUND = "limit-tasks"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jarvis",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.8,
}
FONTS = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
TITLE = "Jarvis beside other job queues: throughput, latency, and cost against backlog"
LATENCY_TICKS_MS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class Row:
    """One peer: its name, its medians, and how its latencies spread."""

    name: str
    jobs_s: float
    spread: list[float]

    @property
    def label(self) -> str:
        """Its name for readers."""
        return NAMES.get(self.name, self.name)

    @property
    def colour(self) -> str:
        """Ours, or another's."""
        return OURS if self.name == "ours" else THEIRS


def draw(documents: Sequence[Mapping[str, Any]]) -> str:
    """The picture as SVG, out of a result of `queue` and one of `flat`."""
    found = {document["benchmark"]: document for document in documents}
    if "queue" not in found:
        raise BenchFailed("there is no result of `queue` among the files")
    with mpl.rc_context(STYLE):
        wide = "flat" in found
        figure = Figure(figsize=(10.4 if wide else 7.4, 3.8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.05))
        axes = figure.subplots(1, 3 if wide else 2, width_ratios=(1.15, 1, 0.95) if wide else (1.15, 1))
        rows = rows_of(found["queue"])
        _throughput(axes[0], rows)
        _latency(axes[1], rows)
        if wide:
            _flat(axes[2], found["flat"])
        figure.supxlabel(_footer(found), fontsize=9, color=INK)
        return _text(figure)


def save(documents: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the picture."""
    out.write_text(draw(documents), encoding="utf-8")


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The peers with a throughput, ours first, then the fastest; our variants are left to the tables."""
    medians = document["medians"]
    names = [name for name, row in medians.items() if "jobs_s" in row and not name.startswith("ours-")]
    rows = [Row(name, medians[name]["jobs_s"], figures.pooled(document["rounds"], name)) for name in names]
    return sorted(rows, key=lambda row: (row.name != "ours", row.name == BOUND, -row.jobs_s))


def _throughput(axes: Axes, rows: Sequence[Row]) -> None:
    most = max(row.jobs_s for row in rows)
    for place, row in enumerate(rows):
        style: dict[str, Any] = {"color": row.colour}
        if row.name == BOUND:
            style = {"facecolor": "none", "edgecolor": THEIRS, "hatch": "////", "linewidth": 0.8}
        axes.barh(place, row.jobs_s, height=0.62, **style)
        weight = "bold" if row.name == "ours" else "normal"
        axes.text(row.jobs_s + most * 0.02, place, f"{row.jobs_s:,.0f}", va="center", fontweight=weight)
    axes.set_xlim(0, most * 1.22)
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    _rows(axes, rows, named=True)
    _titled(axes, "Throughput", "no-op jobs/s, one worker, 100 slots")


def _latency(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        if not row.spread:
            continue
        low, first, middle, third, high = (row.spread[percent] for percent in (1, 25, 50, 75, 99))
        axes.plot([low, high], [place, place], color=row.colour, linewidth=1.4, solid_capstyle="butt")
        axes.plot([first, third], [place, place], color=row.colour, linewidth=7, solid_capstyle="butt")
        axes.plot(middle, place, "o", color=row.colour, markersize=7, markeredgecolor="white", markeredgewidth=1)
        weight = "bold" if row.name == "ours" else "normal"
        axes.text(high * 1.15, place, f"{middle:.1f}", va="center", fontweight=weight)
    _milliseconds(axes, [value for row in rows for value in row.spread])
    _rows(axes, rows, named=False)
    _titled(axes, "Idle latency", "submit to result, ms; dot: median")


def _milliseconds(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values, default=1) / 1.5, max(values, default=10) * 2.2
    axes.set_xlim(low, high)
    axes.set_xticks([tick for tick in LATENCY_TICKS_MS if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _flat(axes: Axes, document: Mapping[str, Any]) -> None:
    levels = document["waiting"]
    waiting = [int(name.split()[0].replace(",", "")) for name in levels]
    costs = [row["cpu_us"] for row in levels.values()]
    each = [sorted(one[name]["cpu_us"] for one in document["rounds"]) for name in levels]
    axes.set_xscale("log")
    low, high = ([figures.percentile(values, percent) for values in each] for percent in (10, 90))
    axes.fill_between(waiting, low, high, color=OURS, alpha=0.18, linewidth=0)
    axes.plot(waiting, costs, "o-", color=OURS, linewidth=2, markersize=6)
    for x, cost in zip(waiting, costs, strict=True):
        axes.annotate(f"{cost:.0f}", (x, cost), (0, 10), textcoords="offset points", ha="center", fontweight="bold")
    axes.set_ylim(0, max(statistics.median(costs) * 1.6, max(high) * 1.1))
    axes.set_xlim(waiting[0] / 1.8, waiting[-1] * 1.8)
    axes.set_xticks(waiting, [_short(count) for count in waiting])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([0], ["0"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("jobs waiting")
    _titled(axes, "Cost against backlog", "Redis µs a job, claim + commit")


def _short(count: int) -> str:
    for unit, name in ((1_000_000, " M"), (1_000, " k")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return str(count)


def _rows(axes: Axes, rows: Sequence[Row], named: bool) -> None:
    axes.set_ylim(len(rows) - 0.45, -0.6)
    axes.set_yticks(range(len(rows)), [row.label if named else "" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if row.name == "ours":
            label.set_color(OURS)
            label.set_fontweight("bold")


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
    axes.text(0, 1.03, below, transform=axes.transAxes, fontsize=10)


def _footer(found: Mapping[str, Mapping[str, Any]]) -> str:
    machine = found["queue"]["machine"]
    day = machine["date"].split()[0]
    where = f"{machine['cores']} cores, {machine['cpu']}, Redis {machine['redis_server']}, append-only file everysec"
    marks = "Medians of interleaved rounds; thick: the middle half, thin: 98 % of all"
    marks += "; band: 80 % of the rounds" if "flat" in found else ""
    return f"{marks}.\n{where}, {day}."


def _text(figure: Figure) -> str:
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": TITLE})
    text = out.getvalue().replace("'DejaVu Sans'", FONTS).replace(f"{FONTS}, sans-serif", FONTS)
    return text.replace("<metadata>", f"<title>{TITLE}</title>\n <metadata>", 1)
