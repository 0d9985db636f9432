"""`jarvis usage` as a table and as CSV."""

from __future__ import annotations

from typing import Any

from ops.usage_cli import csv_of, rows_of


def one(**values: Any) -> dict[str, Any]:
    """A sum as /v1/usage answers it."""
    jobs = {"completed": 2, "incomplete": 0, "failed": 1, "cancelled": 0, "expired": 0}
    numbers = {"prompt_tokens": 20, "completion_tokens": 30, "audio_seconds": 0, "gpu_ms": 1600}
    names = {"day": None, "model": None, "api_key": None, "owner": None}
    return {**names, "jobs": jobs, **numbers, "cost_micros": {"EUR": 2500}} | values


def document(*data: dict[str, Any], groups: tuple[str, ...] = ("day", "owner")) -> dict[str, Any]:
    """An answer."""
    return {"group_by": list(groups), "data": list(data), "total": one()}


def test_the_table_has_a_row_for_each_sum_and_one_for_all() -> None:
    head, row, last = rows_of(document(one(day="2026-11-28", owner="ada")))
    assert head.split() == "DAY OWNER JOBS FAILED PROMPT COMPLETION AUDIO S GPU S COST".split()
    assert row.split() == "2026-11-28 ada 3 1 20 30 0 1.6 0.0025 EUR".split()
    assert last.split()[:3] == ["total", "-", "3"]
    assert len(rows_of(document(one(), groups=()))) == 2


def test_csv_has_every_number_and_no_formula() -> None:
    head, row = csv_of(document(one(day="2026-11-28", owner="@ada"))).splitlines()
    assert head == (
        "day,owner,completed,incomplete,failed,cancelled,expired,"
        "prompt_tokens,completion_tokens,audio_seconds,gpu_ms,cost_micros_EUR"
    )
    assert row == "2026-11-28,'@ada,2,0,1,0,0,20,30,0,1600,2500"
