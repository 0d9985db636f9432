"""`python -m ops.bench fault`: the peers' fault test with ours, and their table beside it.

500 jobs of 50 ms on 10 slots; SIGKILL to the worker when 200 have started, a new worker at once. Every start of a job
is a line in a journal outside the queue, so that losses, second runs and the time to recover are counted, not
guessed. `default` has the settings as they are (a lease of 30 s), `tuned` a lease of 2 s, as the peers' own rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from ops.bench import alone
from ops.bench.crew import Crew, crew
from ops.bench.report import Column, as_table, show

__all__ = ["add_arguments", "run", "show"]

JOBS = 500
SLOTS = 10
KILL_AT = 200
PEERS_LIMIT_S = 1_800
#: The day of the harness' own file of results, as its page gives it.
QUOTED_DAY = "2026-11-22"
SETTINGS: dict[str, dict[str, str]] = {"ours": {}, "ours+tuned": {"JARVIS_LEASE_S": "2"}}
COLUMNS: tuple[Column, ...] = (
    ("in_flight", "in flight at the kill", 0),
    ("lost", "never completed", 0),
    ("ran_twice", "ran twice", 0),
    ("first_rerun_s", "first re-run after s", 1),
    ("last_rerun_s", "last re-run after s", 1),
    ("all_done_s", "all completed after s", 1),
)
Journal = list[tuple[int, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fault`."""
    parser.add_argument("--limit-s", type=float, default=90.0, help="how long it waits for all results")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")
    parser.add_argument("--peers-dir", type=Path, default=Path("../shared/peers"), help="where the peers' harness lies")
    parser.add_argument("--peers", action="store_true", help="measure the peers anew (8 minutes), not quote their file")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rows, tables and the figures of the last line."""
    rows = {name: killed(name, options, environment) for name, environment in SETTINGS.items()}
    peers, title = _peers(options)
    return {
        "rows": rows,
        "peers": peers,
        "tables": [as_table(COLUMNS, rows), *([as_table(COLUMNS, peers, title)] if peers else [])],
        "ratios": {
            "recovery_default_s": rows["ours"]["last_rerun_s"],
            "recovery_tuned_s": rows["ours+tuned"]["last_rerun_s"],
            "lost": sum(row["lost"] for row in rows.values()),
        },
        "errors": [],
    }


def killed(name: str, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """The test once, with these settings for worker and scheduler."""
    with crew(options.aof, **environment) as workers:
        workers.scheduler()
        row = uvloop.run(_killed(workers, options.limit_s))
    print(f"{name}: {row}", flush=True)
    return row


async def _killed(workers: Crew, limit_s: float) -> dict[str, Any]:
    async with alone.connected(workers.server) as ours:
        ids = await ours.enqueue_many("sleep", range(JOBS))
        worker = workers.worker(SLOTS)
        workers.until(lambda: len(journal(workers.journal)) >= KILL_AT, f"{KILL_AT} jobs did not start")
        workers.kill(worker)
        killed_at, before = time.time(), journal(workers.journal)
        done = len([job_id for job_id in ids if await ours.result(job_id)])
        workers.worker(SLOTS)
        ends: dict[str, float] = {}
        while len(ends) < JOBS and time.time() < killed_at + limit_s:
            left = [job_id for job_id in ids if job_id not in ends]
            ends |= {job_id: result["t"] for job_id in left if (result := await ours.result(job_id))}
            await asyncio.sleep(0.1)
    row = told(before, journal(workers.journal), killed_at)
    all_done_s = max(ends.values()) - killed_at if len(ends) == JOBS else None
    return {"in_flight": len(before) - done, "lost": JOBS - len(ends), **row, "all_done_s": all_done_s}


def journal(file: Path) -> Journal:
    """Which job started when; a line that is still being written does not count."""
    if not file.exists():
        return []
    lines = (line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return [(int(number), float(at)) for number, _, at in lines]


def told(before: Journal, whole: Journal, killed_at: float) -> dict[str, Any]:
    """What the journal says: how many jobs ran twice, and when the interrupted ones ran again."""
    started = {number for number, _ in before}
    again = [at - killed_at for number, at in whole[len(before) :] if number in started]
    twice = sum(1 for runs in Counter(number for number, _ in whole).values() if runs > 1)
    return {"ran_twice": twice, "first_rerun_s": min(again, default=None), "last_rerun_s": max(again, default=None)}


def _peers(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], str]:
    file = options.peers_dir / "fault_results.json"
    if options.peers:
        with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as folder:
            measured = Path(folder) / "fault.json"
            command = [sys.executable, "fault.py", "--tuned", "--extend", "380", "--out", str(measured)]
            subprocess.run(command, cwd=options.peers_dir, check=True, timeout=PEERS_LIMIT_S)
            return dict(quoted(json.loads(measured.read_text()))), "the peers, measured in this run, all at once"
    if not file.exists():
        return {}, ""
    return dict(quoted(json.loads(file.read_text()))), f"the peers, quoted from the harness (measured {QUOTED_DAY})"


def quoted(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The peers' results in our columns, those that recovered soonest first."""
    rows = {name: _quoted(result) for name, result in results.items() if "error" not in result}
    never = float("inf")
    yield from sorted(rows.items(), key=lambda row: (row[1]["lost"], row[1]["last_rerun_s"] or never))


def _quoted(result: dict[str, Any]) -> dict[str, Any]:
    end = result.get("at_ext") or result["at_60s"]
    return {
        "in_flight": result["in_flight_at_kill"],
        "lost": JOBS - end["results"],
        "ran_twice": end["ran_twice"],
        "first_rerun_s": end["first_rerun_s"],
        "last_rerun_s": end["last_rerun_s"],
        "all_done_s": None,
    }
