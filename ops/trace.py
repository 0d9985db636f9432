"""Traces: what came when, as lines of JSON, for `jarvis plan`. A job is

    {"at": 12.5, "queue": "generation:demo", "user": "team-a", "lane": "low", "units": 120, "run_ms": 900, "gpu_ms": 6}

with `at` in seconds (Unix time, or from any start), `units` the tokens or seconds of audio that it was thought to need
(0: not known), `run_ms` how long it ran, `gpu_ms` its part of the worker's time (left out: `run_ms` over the worker's
slots). Two kinds of lines say what there was beside the jobs: `{"workers": {"generation:demo": [8, 8]}}`, the slots of
each worker, and `{"shares": {"team-a": ["weight=2"]}}`, limits as in `jarvis keys limits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from common.errors import InvalidField
from common.jobs import encode
from common.policies import Policies

if TYPE_CHECKING:
    from common.jobs import JobRecord
    from common.results import Results

LONGEST_S = 366 * 86_400.0


class Arrival(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job that came."""

    at: float
    queue: str
    run_ms: float = 0
    user: str = "anonymous"
    lane: Literal["high", "normal", "low"] = "normal"
    units: int = 0
    gpu_ms: float | None = None


class Trace(msgspec.Struct):
    """What came, in order of time, and what there was to run it."""

    arrivals: list[Arrival]
    workers: dict[str, list[int]] = {}
    shares: dict[str, list[str]] = {}


class _Line(msgspec.Struct, frozen=True):
    workers: dict[str, list[int]] | None = None
    shares: dict[str, list[str]] | None = None
    at: float | None = None


def read(lines: Iterable[str]) -> Trace:
    """A trace from its lines; raises InvalidField naming the line that is wrong."""
    trace = Trace([])
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
            if line.at is not None:
                trace.arrivals.append(_checked(msgspec.json.decode(text, type=Arrival)))
            trace.workers |= line.workers or {}
            trace.shares |= line.shares or {}
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidField(f"line {number}", text.strip(), f"a line of a trace ({error})") from None
    trace.arrivals.sort(key=lambda arrival: arrival.at)
    if not trace.arrivals:
        raise InvalidField("trace", "no jobs", "at least one line with a job")
    if trace.arrivals[-1].at - trace.arrivals[0].at > LONGEST_S:
        raise InvalidField("at", trace.arrivals[-1].at, "times within a year of each other")
    return trace


def _checked(arrival: Arrival) -> Arrival:
    kind, colon, model = arrival.queue.partition(":")
    if not (kind and colon and model) or " " in arrival.queue:
        raise ValueError("queue is kind:model")
    if arrival.run_ms <= 0 or arrival.units < 0 or (arrival.gpu_ms or 0) < 0:
        raise ValueError("run_ms is above 0, units and gpu_ms are not below")
    return arrival


def lines(trace: Trace) -> Iterator[str]:
    """The lines of a trace."""
    if trace.workers:
        yield encode({"workers": trace.workers}).decode()
    if trace.shares:
        yield encode({"shares": trace.shares}).decode()
    for arrival in trace.arrivals:
        yield encode(arrival).decode()


def load(path: Path) -> Trace:
    """A trace from a file."""
    with path.open(encoding="utf-8") as file:
        return read(file)


async def recorded(results: Results, since: float, most: int) -> Trace:
    """What the queues' records tell: jobs that came since then and ran, the workers of now, and owners' shares."""
    arrivals: list[Arrival] = []
    cursor: str | None = None
    while len(arrivals) < most:
        page = await results.list_jobs(after=cursor, limit=200)
        arrivals += [_arrival(record) for record in page.records if record.run_ms and record.created_at >= since]
        cursor = page.next
        if cursor is None or (page.records and page.records[-1].created_at < since):
            break
    trace = Trace(sorted(arrivals[:most], key=lambda arrival: arrival.at))
    for queue in sorted({arrival.queue for arrival in trace.arrivals}):
        slots = [worker["slots"] for worker in await results.workers(queue)]
        if slots:
            trace.workers[queue] = slots
    shares = await Policies(results.redis, results.settings).shares()
    trace.shares = {owner: limits_of(share) for owner, share in shares.items()}
    return trace


def _arrival(record: JobRecord) -> Arrival:
    at = max(record.created_at, record.run_at or 0)
    return Arrival(
        at, record.queue, record.run_ms or 0, record.user, record.priority, record.units, record.gpu_ms or None
    )


def limits_of(share: dict[str, object]) -> list[str]:
    """A share as it stands in Redis (`common/policies.py`), as limits are written."""
    texts = [f"{name}={share[name]:g}" for name in ("weight", "in_progress") if name in share]
    rows: list[tuple[str, float, int, float]] = share.get("limits", [])  # type: ignore[assignment]
    return texts + [f"{what}={most:.0f}/{ms // 1000}s,burst={burst:.0f},wait" for what, most, ms, burst in rows]
