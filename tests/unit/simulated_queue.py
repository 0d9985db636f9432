"""A queue in simulated time: lanes, users in turn, slots, and callers who poll when they are told to.

It is a fake beside the scripts: what it learns of run times and forecasts is `common/lua/pace.lua` written once more
(`tests/conformance/test_waiting.py` holds the two together), so that thousands of jobs take a second, always the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field

from common import eta
from common.eta import Forecast, Pace, Place, Standing

LANES = {"high": 16, "normal": 4, "low": 1}


@dataclass
class Job:
    """One job and what its caller has seen."""

    at: float
    user: str
    lane: str
    units: int
    run: float
    started: float | None = None
    ended: float | None = None
    first: Forecast | None = None
    polls: int = 0
    noticed: float | None = None


class Learnt:
    """What `pace.lua` keeps."""

    def __init__(self) -> None:
        self.pace = [0.0, 0, 0, 0, 0, 0, 0.25, 0, 0]
        self.factors: dict[str, tuple[float, float, float, float]] = {}
        self.judged = self.covered = 0

    def learn(self, units: float, ms: float) -> None:
        """A job has run."""
        p = self.pace
        n = min(p[0] + 1, 256)
        weight = 1 / n
        if n > 1:
            off = max(-4.0, min(4.0, math.log(max(ms, 1) / max(p[7] + p[8] * units, 1))))
            p[5] += weight * (off - p[5])
            p[6] += weight * (off * off - p[6])
        p[0] = n
        for i, value in enumerate((units, units * units, ms, units * ms), 1):
            p[i] += weight * (value - p[i])
        _, u, uu, r, ur = p[:5]
        spread = uu - u * u
        b = max(0.0, (ur - u * r) / spread) if spread > 0.000001 * uu else 0.0
        a = r - b * u
        p[7], p[8] = (0.0, ur / uu) if a < 0 else (a, b)

    def judge(self, forecast: Forecast, at: float) -> None:
        """A job has ended of which this was foretold."""
        took = max(1.0, at - forecast.made)
        self.judged += 1
        in_time = took <= round(forecast.told_most)
        self.covered += in_time
        n, low, high, lift = self.factors.get(forecast.kind, (0.0, 0.0, 0.0, eta.CAREFUL[forecast.kind[0]]))
        n = min(n + 1, 1000)
        step = max(0.05, 2 / (n + 8))
        above_half, above_most = math.log(took / forecast.half) > low, math.log(took / forecast.most) > high
        low, high = low + step * (above_half - 0.5), high + step * (above_most - 0.09)
        self.factors[forecast.kind] = (n, low, high, max(0.0, min(1.5, lift + 0.05 * (0.92 - in_time))))

    @property
    def known(self) -> Pace | None:
        """Run times as the estimator reads them."""
        return Pace.parse(" ".join(map(str, self.pace))) if self.pace[0] else None


@dataclass
class Simulation:
    """The queue, and the callers' polls."""

    slots: int
    now: float = 0.0
    running: dict[int, Job] = field(default_factory=dict)
    lanes: dict[str, dict[str, deque[Job]]] = field(default_factory=lambda: {lane: {} for lane in LANES})
    times: dict[str, dict[str, float]] = field(default_factory=lambda: {lane: {} for lane in LANES})
    clocks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    credit: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    learnt: Learnt = field(default_factory=Learnt)

    def run(self, jobs: list[Job], polling: bool = True) -> None:
        """All jobs to their end."""
        order = itertools.count()
        events: list[tuple[float, int, str, Job]] = [(job.at, next(order), "submit", job) for job in jobs]
        heapq.heapify(events)
        while events:
            self.now, _, what, job = heapq.heappop(events)
            if what == "submit":
                self._submit(job)
            elif what == "end":
                del self.running[id(job)]
                job.ended = self.now
                self.learnt.learn(job.units, job.run)
                if job.first:
                    self.learnt.judge(job.first, self.now)
            else:
                self._poll(job)
            for started in self._start():
                heapq.heappush(events, (self.now + started.run, next(order), "end", started))
            if what == "submit" or (what == "poll" and job.noticed is None):
                after = self._told(job, first=what == "submit")
                if polling:
                    heapq.heappush(events, (self.now + after, next(order), "poll", job))

    def _submit(self, job: Job) -> None:
        users = self.lanes[job.lane]
        if job.user not in users:
            users[job.user] = deque()
            self.times[job.lane][job.user] = self.clocks[job.lane]
        users[job.user].append(job)

    def _start(self) -> list[Job]:
        started = []
        while len(self.running) < self.slots and (job := self._next()):
            job.started = self.now
            self.running[id(job)] = job
            started.append(job)
        return started

    def _next(self) -> Job | None:
        ready = [lane for lane in LANES if self.lanes[lane]]
        if not ready:
            return None
        for lane in LANES:
            self.credit[lane] = self.credit[lane] + LANES[lane] if lane in ready else 0.0
        lane = max(ready, key=lambda one: self.credit[one])
        self.credit[lane] -= sum(LANES[one] for one in ready)
        times, users = self.times[lane], self.lanes[lane]
        user = min(times, key=lambda one: (times[one], one))
        job = users[user].popleft()
        times[user] += 1
        self.clocks[lane] = times[user]
        if not users[user]:
            del users[user], times[user]
        return job

    def _told(self, job: Job, first: bool) -> float:
        """What the caller is told; returns ms until the next poll."""
        standing = self.standing()
        if job.started is None:
            forecast = eta.of_waiting(standing, self.place(job), job.lane)
            told = forecast.eta if forecast else None
        else:
            forecast = eta.of_waiting(standing, Place(0, 0, 0, 0, 0, False, job.units, True), job.lane)
            told = forecast.eta if first and forecast else eta.of_running(standing, job.units, self.now - job.started)
        if first:
            job.first = forecast
        return max(1000.0, 1000.0 * round(eta.hint_s(told, (self.now - job.at) / 1000)))

    def _poll(self, job: Job) -> None:
        job.polls += 1
        if job.ended is not None:
            job.noticed = self.now

    def standing(self) -> Standing:
        """How the queue stands."""
        depth = [sum(map(len, self.lanes[lane].values())) for lane in LANES]
        running = tuple((self.now - (job.started or 0), float(job.units)) for job in self.running.values())
        factors = {kind: (low, high + lift) for kind, (_, low, high, lift) in self.learnt.factors.items()}
        users = [len(self.lanes[lane]) for lane in LANES]
        return Standing(
            now=self.now,
            workers=1,
            slots=self.slots,
            loading=0,
            busy=len(self.running),
            depth=(depth[0], depth[1], depth[2]),
            pace=self.learnt.known,
            users=(users[0], users[1], users[2]),
            factors=factors,
            running=running,
        )

    def place(self, job: Job) -> Place:
        """A waiting job's place: a copy of the queue is drained up to it."""
        copied = Simulation(self.slots)
        copied.lanes = {lane: {user: deque(q) for user, q in users.items()} for lane, users in self.lanes.items()}
        copied.times = {lane: dict(times) for lane, times in self.times.items()}
        copied.clocks, copied.credit = dict(self.clocks), dict(self.credit)
        before: list[Job] = []
        while (following := copied._next()) is not job:
            assert following is not None
            before.append(following)
        rank = list(LANES).index(job.lane)
        here = [one for one in before if one.lane == job.lane]
        above = sum(list(LANES).index(one.lane) < rank for one in before)
        own = sum(one.user == job.user for one in here)
        below = len(before) - len(here) - above
        units = sum(one.units for one in here)
        return Place(len(before), own, above, below, units, False, job.units, False)


def mixed_load(count: int, slots: int, seed: int, busy: float = 0.85, noise: float = 0.2) -> list[Job]:
    """Jobs of six users in three lanes, 1 to 20 in size, one by one and in bursts; in all `busy` of the slots."""
    chance = random.Random(seed)
    jobs: list[Job] = []
    mean_ms = 150 + 60 * 19 / math.log(20)  # of the sizes below
    at = 0.0
    while len(jobs) < count:
        burst = chance.choice((1, 1, 1, 1, 1, 1, 1, 1, 4, 30))
        user = f"user-{chance.choice((0, 0, 0, 1, 1, 2, 3, 4, 5))}"
        lane = chance.choices(list(LANES), (2, 6, 2))[0]
        for _ in range(burst):
            units = round(math.exp(chance.uniform(0, math.log(20))) * 50)
            run = (150 + 1.2 * units) * chance.lognormvariate(0, noise)
            jobs.append(Job(at, user, lane, units, run))
        at += chance.expovariate(1) * burst * mean_ms / slots / busy
    return jobs[:count]
