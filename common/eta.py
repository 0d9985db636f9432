"""When a job will be done: a distribution, from where it stands and how long its queue's jobs run.

The jobs before it are laid onto the queue's slots, each for as long as a job of its units runs on average; to that
comes its own run, lognormal about the same line. How far such forecasts were off is learnt as jobs end
(`common/lua/pace.lua`), for each lane and for how much can come before a job: what no model sees, such as others
who will come and go first, is in those factors. The arithmetic is pure; times are milliseconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

#: Of a forecast's spread: the standard normal's 90 %.
Z90 = NormalDist().inv_cdf(0.9)
#: Jobs before one that are laid onto slots one by one; more count as work that all slots share.
LAID = 64
#: How sure one is before anything was seen, in jobs: as if so many had been off by a factor of about 1.6.
DOUBT_JOBS, DOUBT = 4, 0.25
#: The lift of a 90 % of which none was judged yet (`pace.lua` begins with the same).
CAREFUL = {"h": 0.1, "n": 0.3, "l": 0.5}
#: A poll hint is never longer, nor shorter, nor less than this part of the time that the job has taken already.
HINT_MAX_S, HINT_MIN_S, HINT_PART = 300.0, 0.05, 0.1
#: Where in the distribution of what is left the next poll should fall: before its middle.
HINT_Z = -0.8


class Eta(msgspec.Struct, frozen=True):
    """Seconds from now until a job is done: as likely sooner as later than p50; sooner than p90 in 9 of 10 cases."""

    p50: float
    p90: float


class Pace(msgspec.Struct, frozen=True):
    """How long a queue's jobs run: `base + per_unit * units`, times a lognormal factor."""

    jobs: float
    mean: float
    base: float
    per_unit: float
    off: float
    spread: float

    @classmethod
    def parse(cls, text: str) -> Pace | None:
        """Read what `pace.lua` keeps; None when no job has run yet."""
        if not text:
            return None
        n, _, _, r, _, off, square, base, per_unit = map(float, text.split())
        variance = (max(0.0, square - off * off) * n + DOUBT * DOUBT_JOBS) / (n + DOUBT_JOBS)
        return cls(n, r, base, per_unit, off, max(0.02, math.sqrt(variance)))

    def expected(self, units: float) -> float:
        """How long a job of so many units runs on average."""
        return max(1.0, self.base + self.per_unit * units)

    @property
    def mean_units(self) -> float:
        """What a job needs on average, as far as it makes it longer."""
        return max(0.0, self.mean - self.base) / self.per_unit if self.per_unit else 0.0

    def middle(self, units: float) -> float:
        """What half of such jobs run shorter than."""
        return max(1.0, self.expected(units) * math.exp(self.off))

    def left(self, units: float, age: float, share: float) -> float:
        """How long, of such jobs that have run for `age`, this share goes on at most."""
        middle = self.middle(units)
        above = max(1e-12, _normal.cdf(-math.log(max(age, 0.5) / middle) / self.spread))
        return max(1.0, middle * math.exp(-self.spread * _normal.inv_cdf((1 - share) * above)) - age)

    def mean_left(self, units: float, age: float) -> float:
        """How long such a job that has run for `age` goes on on average, near enough."""
        return self.left(units, age, 0.6)


class Standing(msgspec.Struct, frozen=True):
    """How a queue stands at a moment."""

    now: float
    workers: int
    slots: int
    loading: int
    busy: int
    depth: tuple[int, int, int]
    pace: Pace | None
    users: tuple[int, int, int] = (0, 0, 0)  # with waiting jobs
    factors: dict[str, tuple[float, float]] = {}
    running: tuple[tuple[float, float], ...] = ()  # age and units of some jobs in progress


class Place(msgspec.Struct, frozen=True):
    """Where a queued job stands: jobs expected to start before it, by what they are."""

    before: int
    own: int
    above: int
    below: int
    before_units: float  # of those in its own lane
    over: bool  # its user has had more than others of late
    units: float
    foretold: bool  # that was asked before
    held_until_ms: int = 0  # when its user's limit has room again; 0: its user is not held
    own_running: int = 0  # its user's jobs in progress, when they are as many as may be


class Forecast(msgspec.Struct, frozen=True):
    """When a job will be done: what the model says, and what is told."""

    kind: str  # h0, h1, n0 ...: its lane, and its `stage`
    made: float
    half: float
    most: float
    told_half: float
    told_most: float

    @property
    def eta(self) -> Eta:
        """What a reader is told."""
        return Eta(round(self.told_half / 1000, 3), round(self.told_most / 1000, 3))

    @property
    def note(self) -> str:
        """What is kept to judge it by."""
        half, most = max(1, round(self.half)), max(1, round(self.most))
        return f"{self.kind} {self.made:.0f} {half} {most} {max(1, round(self.told_most))}"


_normal = NormalDist()
LANES, WEIGHTS = ("high", "normal", "low"), (14, 4, 2)  # as `lanes.lua` has them where it lasts
#: Stages of jobs whose place was not counted: none waits before them; few of their user do, many (6), not known (7).
FIRST, UNCOUNTED = 4, 5


def of_waiting(standing: Standing, place: Place, lane: str, stage: int | None = None) -> Forecast | None:
    """Of a queued job; None while nothing is known: nobody works, or no job of this queue has ever run."""
    pace = standing.pace
    if pace is None or standing.slots == 0:
        return None
    standing, place = _within_bounds(standing, place)
    run = pace.expected(place.units)
    waits = place.before >= standing.slots - standing.busy or place.held_until_ms > 0
    wait = 0.0
    if waits:
        laid = wait_of if stage is None else share_of  # a submit that does not count has no time for more
        wait = max(laid(standing, place), place.held_until_ms - standing.now)
    # Each job before it adds its own doubt, and all slots share it.
    doubt = math.expm1(pace.spread**2)
    shared = (wait * pace.mean / standing.slots if waits else 0.0) + run * run
    half, most = quantiles(wait + pace.middle(place.units) * math.exp(pace.spread**2 / 2), doubt * shared)
    if stage is None:
        stage = stage_of(place, standing) if waits else 0
    return _told(standing, f"{lane[0]}{stage}", half, most)


def uncounted(standing: Standing, ahead: int, own: int, lane: str, units: float) -> Place:
    """Where a job may stand of which is known how many jobs waited before it, and of them those of its user and lane.

    Users take turns within its lane, and lanes by their weights; `own` -1: all of its lane may come first.
    """
    rank, waiting = LANES.index(lane), sum(standing.depth)
    depth = [ahead * one / waiting for one in standing.depth] if waiting else [0.0, 0.0, 0.0]
    if not waiting:
        depth[rank] = ahead
    here = depth[rank]
    if own >= 0:
        here = own + min(max(0.0, here - own), max(1, standing.users[rank] - 1) * (own + 0.5))
    turns = [min(one, (here + 1) * weight / WEIGHTS[rank]) for one, weight in zip(depth, WEIGHTS, strict=True)]
    above, below = round(sum(turns[:rank])), round(sum(turns[rank + 1 :]))
    here_units = round(here) * _mean_units(standing)
    return Place(round(here) + above + below, max(0, own), above, below, here_units, False, units, True)


def of_running(standing: Standing, units: float, age: float) -> Eta | None:
    """Of a job that has run for `age`."""
    pace = standing.pace
    if pace is None:
        return None
    return Eta(round(pace.left(units, age, 0.5) / 1000, 3), round(pace.left(units, age, 0.9) / 1000, 3))


def of_scheduled(standing: Standing, units: float, until: float) -> Eta | None:
    """Of a job that is not due before `until` (ms from now): at worst it comes behind all that waits now."""
    pace = standing.pace
    if pace is None or standing.slots == 0:
        return None
    backlog = max(0.0, sum(standing.depth) * pace.mean / standing.slots - until)
    half, most = until + pace.middle(units), until + backlog + pace.left(units, 0, 0.9)
    return Eta(round(half / 1000, 3), round(most / 1000, 3))


def stage_of(place: Place, standing: Standing) -> int:
    """How much may come before a waiting job that is not there yet: the more of its user's jobs are before it."""
    return 1 if place.own == 0 else 2 if place.own < 2 * standing.slots else 3


def _within_bounds(standing: Standing, place: Place) -> tuple[Standing, Place]:
    """Of a user who has as many jobs in progress as he may: those are all the slots, and his own jobs all the line."""
    if not place.own_running:
        return standing, place
    slots = min(standing.slots, place.own_running)
    mine = msgspec.structs.replace(
        place, before=place.own, above=0, below=0, before_units=place.own * _mean_units(standing), held_until_ms=0
    )
    return msgspec.structs.replace(standing, slots=slots, busy=slots, running=()), mine


def _mean_units(standing: Standing) -> float:
    return standing.pace.mean_units if standing.pace else 0.0


def wait_of(standing: Standing, place: Place) -> float:
    """How long until a slot is free for a job, by laying the jobs before it onto the slots one by one."""
    pace = standing.pace
    assert pace is not None
    free = max(0, standing.slots - standing.busy)
    each = _each(standing, place)
    known = [pace.mean_left(units, age) for age, units in standing.running[: standing.slots]]
    usual = sum(known) / len(known) if known else pace.mean
    slots = [0.0] * free + known + [usual] * (standing.slots - free - len(known))
    heapq.heapify(slots)
    for _ in range(min(place.before, LAID)):
        heapq.heapreplace(slots, slots[0] + each)
    return slots[0] + max(0, place.before - LAID) * each / len(slots)


def share_of(standing: Standing, place: Place) -> float:
    """`wait_of`, as if all that runs and waits were work that all slots share."""
    free = max(0, standing.slots - standing.busy)
    return (max(0, place.before - free) + 0.5) * (_each(standing, place) or _mean(standing)) / standing.slots


def _each(standing: Standing, place: Place) -> float:
    """How long each of the jobs before one runs on average."""
    pace = standing.pace
    if not place.before or pace is None:
        return 0.0
    beside = place.above + place.below
    here = place.before - beside
    return (beside * pace.mean + here * pace.base + place.before_units * pace.per_unit) / place.before


def _mean(standing: Standing) -> float:
    return standing.pace.mean if standing.pace else 0.0


def quantiles(mean: float, variance: float) -> tuple[float, float]:
    """The 50 % and 90 % of a lognormal distribution with this mean and variance."""
    spread = math.sqrt(math.log1p(variance / (mean * mean)))
    half = mean * math.exp(-spread * spread / 2)
    return half, half * math.exp(Z90 * spread)


def _told(standing: Standing, kind: str, half: float, most: float) -> Forecast:
    low, high = standing.factors.get(kind, (0.0, CAREFUL[kind[0]]))
    told_half = half * math.exp(max(-3.0, min(3.0, low)))
    told_most = max(told_half, most * math.exp(max(-3.0, min(3.0, high))))
    return Forecast(kind, standing.now, half, most, told_half, told_most)


def hint_s(eta: Eta | None, age_s: float) -> float:
    """Seconds after which to ask again: seldom too early, and not long after the end.

    Nothing known: a fifth of the time that it has taken already. Late beyond all expectation: a tenth of it.
    """
    if eta is None:
        return min(max(1.0, 0.2 * age_s), 30.0)
    spread = math.log(max(eta.p90, 0.001) / max(eta.p50, 0.001)) / Z90
    soon = eta.p50 * math.exp(HINT_Z * spread)
    return min(max(soon, HINT_MIN_S, HINT_PART * age_s), HINT_MAX_S)


def factors_of(flat: Sequence[bytes]) -> dict[str, tuple[float, float]]:
    """Factors as the script returns them."""
    found = {}
    for kind, numbers in zip(flat[::2], flat[1::2], strict=True):
        _, low, high, lift = map(float, numbers.split())
        found[kind.decode()] = low, high + lift
    return found
