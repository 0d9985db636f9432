"""The estimator: against single cases, and against a simulated queue under a mixed load."""

from __future__ import annotations

import math
import random
from statistics import fmean, median

import pytest

from common.eta import (
    FIRST,
    HINT_MAX_S,
    UNCOUNTED,
    Eta,
    Pace,
    Place,
    Standing,
    hint_s,
    of_running,
    of_scheduled,
    of_waiting,
    quantiles,
    uncounted,
)
from tests.unit.simulated_queue import Job, Simulation, mixed_load

PACE = Pace(jobs=200, mean=1000, base=1000, per_unit=0, off=-0.02, spread=0.2)


def standing(**fields: object) -> Standing:
    """A queue with four slots, all of them taken by jobs that have just begun."""
    usual = {"now": 0, "workers": 1, "slots": 4, "loading": 0, "busy": 4, "depth": (0, 9, 0), "pace": PACE}
    return Standing(**{**usual, "running": ((1.0, 0.0),) * 4, **fields})  # type: ignore[arg-type]


def place(before: int = 0, **fields: object) -> Place:
    """So many jobs of others before it."""
    usual = {"own": 0, "above": 0, "below": 0, "before_units": 0, "over": False, "units": 0, "foretold": False}
    return Place(**{"before": before, **usual, **fields})  # type: ignore[arg-type]


def told(found: object) -> Eta:
    """What is told, which must be something."""
    eta = getattr(found, "eta", found)
    assert isinstance(eta, Eta)
    return eta


def test_a_job_that_finds_a_free_slot_needs_its_own_run() -> None:
    eta = told(of_waiting(standing(busy=3), place(), "normal"))
    assert 0.9 < eta.p50 < 1.1
    assert 1.2 < eta.p90 < 1.8


def test_a_job_behind_others_waits_for_their_runs_shared_by_the_slots() -> None:
    eta = told(of_waiting(standing(), place(40), "normal"))
    assert eta.p50 == pytest.approx(40 / 4 + 1 + 1, rel=0.15)
    sure = told(of_waiting(standing(factors={"n1": (0, 0)}), place(40), "normal"))
    assert sure.p90 / sure.p50 < 1.2  # sums are surer than their parts
    assert sure.p90 < eta.p90  # one is careful before any was judged


def test_very_many_jobs_are_work_that_all_slots_share() -> None:
    assert told(of_waiting(standing(), place(100_000), "normal")).p50 == pytest.approx(25_000, rel=0.05)


def test_units_before_it_count() -> None:
    pace = Pace(200, 1000, 100, 10, 0, 0.2)
    small = told(of_waiting(standing(pace=pace), place(10, before_units=10, units=1), "normal"))
    large = told(of_waiting(standing(pace=pace), place(10, before_units=4_000, units=1), "normal"))
    assert large.p50 > small.p50 + 7.5


def test_a_user_who_may_have_no_more_jobs_waits_for_his_own() -> None:
    bounded = told(of_waiting(standing(slots=100, busy=3), place(50, own=9, own_running=1), "normal"))
    assert bounded.p50 == pytest.approx(9 + 1 + 1, rel=0.15)


def test_a_user_whose_limit_is_used_up_waits_until_it_has_room() -> None:
    held = told(of_waiting(standing(now=1_000_000, busy=0), place(0, held_until_ms=1_060_000), "normal"))
    assert held.p50 == pytest.approx(61, rel=0.02)


def test_nothing_is_told_when_nothing_is_known() -> None:
    assert of_waiting(standing(pace=None), place(), "normal") is None
    assert of_waiting(standing(slots=0, busy=0), place(), "normal") is None
    assert of_running(standing(pace=None), 0, 10) is None
    assert of_scheduled(standing(pace=None), 0, 10) is None
    assert Pace.parse("") is None


def test_a_job_that_runs_has_less_left_the_longer_it_has_run_and_always_something() -> None:
    left = [told(of_running(standing(), 0, age)) for age in (0, 500, 900)]
    assert left[0].p50 > left[1].p50 > left[2].p50
    for age in (2_000, 60_000, 10**9):
        late = told(of_running(standing(), 0, age))
        assert 0 < late.p50 <= late.p90


def test_what_is_left_of_a_run_is_the_rest_of_its_distribution() -> None:
    chance = random.Random(1)
    runs = [1000 * chance.lognormvariate(-0.02, 0.2) for _ in range(40_000)]
    left = sorted(run - 900 for run in runs if run > 900)
    assert PACE.left(0, 900, 0.5) == pytest.approx(left[len(left) // 2], rel=0.05)
    assert PACE.left(0, 900, 0.9) == pytest.approx(left[int(len(left) * 0.9)], rel=0.05)


def test_a_scheduled_job_comes_after_its_time_and_at_worst_behind_all_that_waits() -> None:
    eta = told(of_scheduled(standing(depth=(0, 400, 0)), 0, 60_000))
    assert eta.p50 == pytest.approx(61, rel=0.02)
    assert eta.p90 == pytest.approx(60 + 40 + 1.25, rel=0.02)


def test_learnt_factors_move_what_is_told() -> None:
    later = told(of_waiting(standing(factors={"n1": (math.log(2), math.log(3))}), place(40), "normal"))
    usual = told(of_waiting(standing(factors={"n1": (0, 0)}), place(40), "normal"))
    assert later.p50 == pytest.approx(2 * usual.p50, rel=0.01)
    assert later.p90 == pytest.approx(3 * usual.p90, rel=0.01)
    wild = told(of_waiting(standing(factors={"n1": (99, 99)}), place(40), "normal"))
    assert wild.p90 < 25 * usual.p90


def test_quantiles_are_those_of_a_lognormal_distribution() -> None:
    chance = random.Random(2)
    values = sorted(chance.lognormvariate(1, 0.5) for _ in range(40_000))
    variance = fmean(value * value for value in values) - fmean(values) ** 2
    half, most = quantiles(fmean(values), variance)
    assert half == pytest.approx(values[20_000], rel=0.03)
    assert most == pytest.approx(values[36_000], rel=0.03)


# -- poll hints


def test_a_hint_falls_before_the_middle_and_never_asks_for_nothing() -> None:
    assert 6 < hint_s(Eta(10, 14), 0) < 10
    assert 0 < hint_s(Eta(0.001, 0.002), 0) < 0.2
    assert hint_s(Eta(1e6, 2e6), 0) == HINT_MAX_S


def test_a_job_that_is_late_is_asked_for_ever_less_often() -> None:
    assert hint_s(Eta(0.1, 0.2), 100) == 10
    assert hint_s(None, 0) == 1
    assert hint_s(None, 50) == 10
    assert hint_s(None, 10_000) == 30


# -- a simulated queue


def simulated(count: int, seed: int, busy: float, noise: float = 0.2) -> list[Job]:
    """A mixed load on eight slots, after its end."""
    jobs = mixed_load(count, 8, seed, busy, noise)
    Simulation(8).run(jobs)
    return jobs


@pytest.mark.parametrize(("seed", "busy", "noise"), [(1, 0.5, 0.2), (2, 0.85, 0.2), (1, 1.05, 0.2), (3, 0.85, 0.6)])
def test_under_a_mixed_load_etas_are_true_and_polls_few(seed: int, busy: float, noise: float) -> None:
    """From nothing known: half to more than full load, bursts of 30, sizes 1:20."""
    jobs = simulated(2_000, seed, busy, noise)
    ends = [(job, job.first, job.ended - job.at) for job in jobs if job.first and job.ended is not None]
    assert len(ends) > 0.9 * len(jobs)
    assert 0.85 <= fmean(took <= first.told_most for _, first, took in ends) <= 0.97
    assert median(abs(took - first.told_half) / took for _, first, took in ends) < 0.4
    assert fmean(job.polls for job in jobs) <= 4
    late = [((job.noticed or 0) - (job.ended or 0), took) for job, _, took in ends]
    assert fmean(over <= max(1000, 0.2 * took) for over, took in late) >= 0.95


def test_coverage_comes_back_after_the_machines_have_become_slower() -> None:
    jobs = mixed_load(1_500, 8, seed=5, busy=0.5)
    for job in jobs[500:]:
        job.run *= 1.8
    Simulation(8).run(jobs, polling=False)
    last = [(job.first, job.ended - job.at) for job in jobs[800:] if job.first and job.ended is not None]
    assert 0.85 <= fmean(took <= first.told_most for first, took in last) <= 0.98


# -- places that were not counted


def test_a_place_that_was_not_counted_goes_by_turns_of_users_and_lanes() -> None:
    others = standing(depth=(0, 100, 0), users=(0, 2, 0))
    assert uncounted(others, 100, 0, "normal", 0).before <= 1  # the other's hundred and its own none
    assert uncounted(others, 100, 10, "normal", 0).before == pytest.approx(20, abs=2)
    assert uncounted(others, 100, -1, "normal", 0).before == 100  # whose they are is not known
    lanes = standing(depth=(50, 0, 50), users=(1, 0, 1))
    assert uncounted(lanes, 100, 0, "high", 0).before < 10
    assert uncounted(lanes, 100, 49, "low", 0).before > 90
    assert uncounted(standing(depth=(0, 0, 0)), 7, -1, "low", 0).before == 7


def test_a_job_whose_place_was_not_counted_is_foretold_about_the_same() -> None:
    """Without laying out what is before it: that would cost a submit more than all the rest of it."""
    for before in (5, 40, 500):
        laid = told(of_waiting(standing(factors={"n1": (0, 0)}), place(before), "normal"))
        shared = told(of_waiting(standing(factors={"n5": (0, 0)}), place(before), "normal", UNCOUNTED))
        assert shared.p50 == pytest.approx(laid.p50, rel=0.25)
    free = told(of_waiting(standing(busy=0, factors={"n4": (0, 0)}), place(), "normal", FIRST))
    assert free.p50 == pytest.approx(1, rel=0.1)
