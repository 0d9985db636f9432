"""Medians, percentiles and same-round ratios: how many figures become one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Round = Mapping[str, Mapping[str, Any]]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def percentiles(times_ms: Sequence[float]) -> dict[str, Any]:
    """The usual percentiles, and as `latency_ms` one value for each percent, to draw how they spread."""
    shown = {"p50": percentile(times_ms, 50), "p90": percentile(times_ms, 90), "p99": percentile(times_ms, 99)}
    spread = [round(percentile(times_ms, percent), 4) for percent in range(101)]
    return {"n": len(times_ms), **shown, "max": max(times_ms), "latency_ms": spread}


def pooled(rounds: Sequence[Round], name: str) -> list[float]:
    """The `latency_ms` of all rounds of a row, one value for each percent; empty when there is none."""
    values = [value for one in rounds for value in one.get(name, {}).get("latency_ms", ())]
    return [percentile(values, percent) for percent in range(101)] if values else []


def medians(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """For each row, the median over the rounds of each of its numbers."""
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for one in rounds for name in one):
        runs = [one[name] for one in rounds if name in one]
        fields = dict.fromkeys(field for run in runs for field, value in run.items() if is_number(value))
        out[name] = {f: statistics.median(run[f] for run in runs if is_number(run.get(f))) for f in fields}
    return out


def ratio(rounds: Sequence[Round], ours: str, field: str, theirs: Sequence[str]) -> float | None:
    """The median of our figure over the best of theirs in the same round; None when no round has both."""
    found = []
    for one in rounds:
        others = [one[name][field] for name in theirs if is_number(one.get(name, {}).get(field))]
        mine: Any = one.get(ours, {}).get(field)
        if is_number(mine) and others:
            found.append(mine / max(others))
    return statistics.median(found) if found else None


def last_line(ratios: Mapping[str, float | None]) -> str:
    """`name=ratio` pairs; one that could not be measured says none."""
    return " ".join(f"{name}={'none' if value is None else f'{value:.2f}'}" for name, value in ratios.items())


def is_number(value: object) -> bool:
    """Whether it is a figure (True and False are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
