from __future__ import annotations

from workers.engines.admission import Admission


def test_without_pressure_all_slots_are_allowed() -> None:
    admission = Admission(64, 8)
    for _ in range(100):
        admission.note(running=64, waiting=0, usage=0.97, finished=1)
    assert admission.allowed == 64


def test_requests_that_wait_for_a_step_and_not_for_memory_are_no_pressure() -> None:
    admission = Admission(64, 8)
    admission.note(running=4, waiting=60, usage=0.1, finished=0)
    assert admission.allowed == 64


def test_a_full_cache_leaves_three_quarters_of_what_runs_and_is_cut_once_until_that_has_taken_hold() -> None:
    admission = Admission(64, 8)
    for waiting in range(44, 0, -1):
        admission.note(running=20, waiting=waiting, usage=0.99, finished=0)
    assert admission.allowed == 15
    admission.note(running=14, waiting=1, usage=0.99, finished=0)
    assert admission.allowed == 10


def test_it_never_goes_below_the_least() -> None:
    admission = Admission(64, 8)
    for running in (40, 20, 5, 1):
        admission.note(running=running, waiting=1, usage=1.0, finished=0)
    assert admission.allowed == 8
    assert Admission(4, 8).least == 4


def test_with_room_it_grows_by_a_quarter_for_each_generation_of_requests() -> None:
    admission = Admission(64, 8)
    admission.allowed = 8
    seen, finished = [8], 0
    while admission.allowed < 64:
        admission.note(running=admission.allowed, waiting=0, usage=0.2, finished=1)
        finished += 1
        if admission.allowed != seen[-1]:
            seen.append(admission.allowed)
    assert seen[:4] == [8, 10, 12, 15]
    assert seen[-1] == 64
    assert finished == sum(seen[:-1])


def test_it_does_not_grow_for_nothing_nor_into_a_cache_that_is_nearly_full() -> None:
    admission = Admission(64, 8)
    admission.allowed = 8
    for _ in range(20):
        admission.note(running=4, waiting=0, usage=0.2, finished=8)  # fewer requests than allowed
        admission.note(running=8, waiting=0, usage=0.85, finished=8)  # one more would fill 96 %
    assert admission.allowed == 8
