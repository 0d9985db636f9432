"""The table of leases that a worker and its beat share."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from workers.slots import Held, SlotTable


def test_what_the_worker_holds_the_beat_reads() -> None:
    table = SlotTable.create(3)
    beat = SlotTable(os.fdopen(os.dup(table.file.fileno()), "r+b", buffering=0), 3)
    first = table.hold("job_a:1", 1.0, 2.0)
    table.hold("job_b:7", 3.0, 4.5)
    assert sorted(beat.held()) == [Held("job_a:1", 1.0, 2.0), Held("job_b:7", 3.0, 4.5)]
    table.clear(first)
    assert beat.held() == [Held("job_b:7", 3.0, 4.5)]
    table.close()
    beat.close()


def test_a_cleared_row_is_used_again() -> None:
    table = SlotTable.create(1)
    for number in range(5):
        row = table.hold(f"job:{number}", 0.0, 0.0)
        assert [held.lease for held in table.held()] == [f"job:{number}"]
        table.clear(row)
    assert table.held() == []
    table.close()


@given(st.lists(st.sampled_from(["hold", "clear"]), max_size=60))
def test_the_table_holds_what_was_held_and_not_cleared(moves: list[str]) -> None:
    table = SlotTable.create(4)
    rows: dict[int, str] = {}
    for number, move in enumerate(moves):
        if move == "hold" and len(rows) < 4:
            rows[table.hold(f"job:{number}", float(number), 0.0)] = f"job:{number}"
        elif move == "clear" and rows:
            row, _ = rows.popitem()
            table.clear(row)
        assert {held.lease for held in table.held()} == set(rows.values())
    table.close()


def test_a_row_that_is_half_written_hurts_nobody() -> None:
    table = SlotTable.create(2)
    table.hold("job_a:1", 1.0, 2.0)
    table._map[0:4] = b"\xff\xfe\x00\x01"
    assert "job_a:1" in {held.lease for held in table.held()}
    table.close()
