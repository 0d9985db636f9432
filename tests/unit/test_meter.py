"""How a worker's busy time is divided among its jobs."""

from __future__ import annotations

from workers.meter import Meter


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_jobs_that_run_together_share_the_time_and_one_alone_has_it_all() -> None:
    clock = Clock()
    meter = Meter(clock)
    first = meter.start()
    clock.now += 1  # alone
    second = meter.start()
    clock.now += 2  # two
    assert meter.end(first) == 2000
    clock.now += 1  # the second alone
    assert meter.end(second) == 2000


def test_the_parts_add_up_to_the_time_in_which_any_job_ran_whatever_is_rounded() -> None:
    clock = Clock()
    meter = Meter(clock)
    total = 0
    for _ in range(1000):
        began = [meter.start() for _ in range(3)]
        clock.now += 0.001  # a third of a millisecond each
        total += sum(meter.end(start) for start in began)
        clock.now += 5  # idle: nobody's
    assert abs(total - 1000) <= 1
