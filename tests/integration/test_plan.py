"""The planner: the queue's own scripts in simulated time, and fair queueing's bound tested in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from typer.testing import CliRunner

from common.errors import InvalidField
from common.jobs import JobResult
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome
from common.scripts import SimulatedTime
from ops import trace
from ops.cli import app
from ops.plan import Outcomes, Simulation, private_redis, summary, workers_of
from ops.plan_cli import planned
from ops.trace import Arrival, Trace
from tests.conformance.world import World, spec

QUEUE = "generation:demo"


@pytest.fixture(scope="module")
def runner() -> Iterator[tuple[asyncio.Runner, SimulatedTime]]:
    """A loop of the module's own, and the planner's Redis in it."""
    with asyncio.Runner() as loop:
        place = private_redis()
        client = loop.run(place.__aenter__())
        yield loop, client
        loop.run(place.__aexit__(None, None, None))


def simulated(
    runner: tuple[asyncio.Runner, SimulatedTime], made: Trace, workers: dict[str, list[int]] | None = None
) -> Outcomes:
    """One run of a trace."""
    loop, client = runner
    return loop.run(Simulation(client, made, workers or workers_of(made)).run())


def backlog(user: str, sizes: list[int], lane: Any = "normal") -> list[Arrival]:
    """Jobs that are all there from the start; a unit costs a millisecond."""
    return [Arrival(0.0, QUEUE, size, user, lane, size, size) for size in sizes]


def learnt() -> list[Arrival]:
    """One job before all others, by which the queue learns what a unit costs."""
    return [Arrival(-1000.0, QUEUE, 10, "first", "normal", 10, 10)]


sizes = st.sampled_from([1, 3, 10, 30, 100])
owners = st.lists(st.tuples(st.integers(1, 10), st.lists(sizes, min_size=5, max_size=25)), min_size=2, max_size=4)


@given(owners=owners, slots=st.integers(1, 4))
@profile(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_two_who_always_wait_differ_by_one_job_of_each_over_any_interval(
    runner: tuple[asyncio.Runner, SimulatedTime], owners: list[tuple[int, list[int]]], slots: int
) -> None:
    """|W_i/w_i - W_j/w_j| <= c_i/w_i + c_j/w_j, from any start to any other; and no slot is empty while a job waits."""
    arrivals, shares = learnt(), {}
    for number, (weight, jobs) in enumerate(owners):
        arrivals += backlog(f"user-{number}", jobs)
        shares[f"user-{number}"] = [f"weight={weight}"]
    out = simulated(runner, Trace(arrivals, {QUEUE: [slots]}, shares))
    starts = out.starts[1:]
    assert len(starts) == len(arrivals) - 1
    for (one, (weight_i, jobs_i)), (other, (weight_j, jobs_j)) in combinations(enumerate(owners), 2):
        bound = max(jobs_i) / weight_i + max(jobs_j) / weight_j
        left = {f"user-{one}": len(jobs_i), f"user-{other}": len(jobs_j)}
        difference, seen = 0.0, [0.0]
        for start in starts:
            user = start.arrival.user
            if user not in left:
                continue
            left[user] -= 1
            mine, weight = (1, weight_i) if user == f"user-{one}" else (-1, weight_j)
            difference += mine * start.arrival.run_ms / weight
            seen.append(difference)
            if not left[user]:
                break  # from here on one of them has nothing that waits
        assert max(seen) - min(seen) <= bound + 1e-6
    _never_idle(out, slots)


def _never_idle(out: Outcomes, slots: int) -> None:
    # As long as anything waited, as many ran as there are slots: the work of every moment adds up.
    ends = [(start.at, start.at + start.arrival.run_ms / 1000) for start in out.starts[1:]]
    for at, _ in ends:
        running = sum(begun <= at < end for begun, end in ends)
        waiting = sum(begun > at for begun, _ in ends)
        assert running == slots or not waiting


def test_weights_shift_waits_and_a_worker_more_shortens_them(
    runner: tuple[asyncio.Runner, SimulatedTime], tmp_path: Path
) -> None:
    made = Trace([one for user in ("team-a", "team-b") for one in backlog(user, [100] * 40)], {QUEUE: [2]})
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(trace.lines(made)))
    loop, _ = runner
    found = loop.run(planned(file, ["generation=1"], ["team-a=3"], []))
    before, after = found["before"], found["after"]
    assert before["users"]["team-a"]["wait_p50_s"] == pytest.approx(before["users"]["team-b"]["wait_p50_s"], abs=0.2)
    assert after["users"]["team-a"]["wait_p95_s"] < after["users"]["team-b"]["wait_p95_s"]
    assert after["span_s"] == pytest.approx(before["span_s"] / 2, rel=0.1)
    assert before["queues"][QUEUE]["utilisation"] > 0.95


def test_bounds_and_limits_hold_in_a_plan(runner: tuple[asyncio.Runner, SimulatedTime]) -> None:
    shares = {"a": ["in_progress=2"], "b": ["tokens=100/10s,wait"]}
    out = simulated(runner, Trace(backlog("a", [1000] * 6) + backlog("b", [100] * 3), {QUEUE: [8]}, shares))
    started = {user: sorted(s.at for s in out.starts if s.arrival.user == user) for user in "ab"}
    assert started["a"] == pytest.approx([0, 0, 1, 1, 2, 2], abs=0.01)
    assert started["b"] == pytest.approx([0, 10, 20], abs=0.1)


def test_one_who_floods_and_one_who_comes_later(runner: tuple[asyncio.Runner, SimulatedTime]) -> None:
    late = [Arrival(5.0 + n, QUEUE, 100, "late", "normal", 100, 100) for n in range(20)]
    out = simulated(runner, Trace(backlog("flood", [100] * 2000) + late, {QUEUE: [4]}))
    waits = [start.waited_s for start in out.starts if start.arrival.user == "late"]
    assert max(waits) <= 0.1 + 1e-6, "the time of one job of those that ran when it came"


def test_the_same_trace_gives_the_same_plan(runner: tuple[asyncio.Runner, SimulatedTime]) -> None:
    made = Trace(backlog("a", [10, 20, 30] * 5) + backlog("b", [30, 1] * 9, "high"), {QUEUE: [3]})
    assert summary(simulated(runner, made)) == summary(simulated(runner, made))


def test_a_queue_without_workers_starts_nothing_and_ends(runner: tuple[asyncio.Runner, SimulatedTime]) -> None:
    out = simulated(runner, Trace(backlog("a", [10] * 3)), {QUEUE: []})
    assert summary(out)["users"] == {"a": {"jobs": 0, "wait_p50_s": None, "wait_p95_s": None, "never_started": 3}}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"at": 1, "queue": "demo", "run_ms": 5}', "kind:model"),
        ('{"at": 1, "queue": "generation:demo", "run_ms": 0}', "run_ms"),
        ('{"at": 1, "queue": "generation:demo", "run_ms": 5, "lane": "fast"}', "lane"),
        ("not json", "line 2"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str) -> None:
    with pytest.raises(InvalidField, match=why):
        trace.read(["", line])


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(trace.lines(Trace(backlog("a", [10])))))
    for more in (["--add-worker", "speech=1"], ["--weight", "a=0"], ["--slots", "generation=x"]):
        done = CliRunner().invoke(app, ["plan", "--trace", str(file), *more])
        assert done.exit_code == 2
        assert more[0] in done.stderr


async def test_a_trace_is_what_was_recorded(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.queue import Queue
    from common.settings import Settings

    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    queue = await Queue.connect(settings)
    world = World(queue.redis, settings, "redis")
    await Policies(queue.redis, settings).set_share("ada", Policy.parse(["weight=2", "tokens=10/60s,wait"]))
    await queue.submit(spec(user="ada", priority="high", units=9))
    job = await world.claim_one()
    await queue.renew(QUEUE, "worker-1", json.dumps({"id": "worker-1", "slots": 5}).encode(), [])
    await asyncio.sleep(0.01)  # so that it has run for some time
    done = Outcome.done(job, job.seq, JobResult({}))
    await queue.commit(QUEUE, [Outcome(job, done.kind, job.seq, done.body, gpu_ms=4)])
    made = await trace.recorded(world.results, 0, 100)
    (arrival,) = made.arrivals
    assert (arrival.user, arrival.lane, arrival.units, arrival.gpu_ms, arrival.queue) == ("ada", "high", 9, 4, QUEUE)
    assert made.workers == {QUEUE: [5]}
    assert made.shares == {"ada": ["weight=2", "tokens=10/60s,burst=10,wait"]}
    assert trace.read(trace.lines(made)) == made
    await world.results.close()
    await queue.close()
