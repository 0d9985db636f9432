"""What a key may use and how much of the machines its owner gets: limits, tiers, weights.

A limit is written `what=amount/window[,burst=N][,wait]`, as on the command line and in the settings:

    requests=100/3600s          100 an hour, the first 100 at once (GCRA: one more every 36 s after that)
    requests=60/60s,burst=10    one a second, at most 10 at once
    tokens=100k/1d              past it the door answers 429
    tokens=10k/1m,wait          past it the owner's jobs wait, while others' run
    audio_seconds=2h/1d         recordings of two hours a day
    cost=5/1d                   money, in the currency of the catalogue's prices
    in_progress=4               jobs of the owner that run at a time; more wait
    waiting=1000                jobs of the key that wait at a time; past it the door answers 429
    weight=2                    the owner's part of the machines, against 1 of others
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from common.errors import InvalidField

#: What is counted in a window of time.
METERED = ("requests", "tokens", "audio_seconds", "cost")
#: What is counted at a moment, and the weight.
PLAIN = ("in_progress", "waiting", "weight")

ALLOWED = (
    "what=amount/window, e.g. requests=100/3600s, tokens=10k/1m,wait or audio_seconds=2h/1d,"
    f" of {', '.join(METERED)}; or in_progress=N, waiting=N, weight=N"
)
#: Those past which jobs may wait, and those whose amounts are times.
MAY_WAIT, TIMES = ("tokens", "audio_seconds"), ("audio_seconds",)
LONGEST_WINDOW_S = 366 * 86_400
MOST = 10**12

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kMsmhd]?)")
_WINDOW = re.compile(r"(\d+)([smhd]?)")


class Limit(msgspec.Struct, frozen=True, omit_defaults=True):
    """So much of something in a window, counted by GCRA: `burst` at once, and `amount` per window thereafter."""

    what: str
    amount: float
    window_s: int
    burst: float
    wait: bool = False  # enforced where jobs are claimed, not at the door

    @property
    def name(self) -> str:
        """Its name in headers and errors, e.g. `requests-3600s`."""
        return f"{self.what}-{self.window_s}s"

    def __str__(self) -> str:
        burst = "" if self.burst == self.amount else f",burst={self.burst:g}"
        return f"{self.what}={_number(self.amount)}/{self.window_s}s{burst}{',wait' if self.wait else ''}"


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one key may do."""

    limits: tuple[Limit, ...] = ()
    in_progress: int | None = None
    waiting: int | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, texts: Iterable[str], field: str = "limit") -> Policy:
        """Read limits; of two with one name and window the later counts. Raises InvalidField."""
        metered: dict[str, Limit] = {}
        plain: dict[str, Any] = {}
        for text in texts:
            what, _, rest = text.strip().partition("=")
            if what in METERED:
                limit = _metered(what, rest, text, field)
                metered[limit.name] = limit
            elif what in PLAIN:
                plain[what] = _plain(what, rest, text, field)
            else:
                raise InvalidField(field, text, ALLOWED)
        return cls(tuple(metered.values()), **plain)

    def over(self, other: Policy) -> Policy:
        """This policy, and of the other one (a tier) what this one does not say."""
        mine = {limit.what for limit in self.limits}
        return Policy(
            self.limits + tuple(limit for limit in other.limits if limit.what not in mine),
            self.in_progress if self.in_progress is not None else other.in_progress,
            self.waiting if self.waiting is not None else other.waiting,
            self.weight if self.weight != 1.0 else other.weight,
        )

    def texts(self) -> list[str]:
        """The policy as it is written."""
        plain = [f"{name}={getattr(self, name):g}" for name in ("in_progress", "waiting") if getattr(self, name)]
        weight = [] if self.weight == 1.0 else [f"weight={self.weight:g}"]
        return [str(limit) for limit in self.limits] + plain + weight


class Left(msgspec.Struct, frozen=True):
    """How one limit of a key stands at a moment: what is left of it, and how long until all of it is there again."""

    what: str
    window_s: int
    amount: float
    left: float
    reset_ms: int

    @property
    def name(self) -> str:
        """As Limit's."""
        return f"{self.what}-{self.window_s}s"

    @staticmethod
    @lru_cache(maxsize=256)  # jobs of a key that went to Redis together hear the same
    def parse(text: str) -> tuple[Left, ...]:
        """Read what `standing_of` in `common/lua/limits.lua` writes."""
        return tuple(_left(*row.split(" ")) for row in text.split(";") if row)


def _left(what: str, window_ms: str, amount: str, left: str, reset_ms: str) -> Left:
    return Left(what, int(window_ms) // 1000, float(amount), float(left), int(reset_ms))


def cost_taken(held: bytes | None) -> int:
    """What a job's limits have taken of money, in millionths: of each `<limit> <taken> <since> <share>`."""
    words = (held or b"").decode().split(" ")
    taken = [float(words[i + 1]) for i in range(0, len(words) - 1, 4) if words[i].startswith("cost-")]
    return round(max(taken, default=0.0) * 1_000_000)


def _metered(what: str, rest: str, text: str, field: str) -> Limit:
    head, *options = rest.split(",")
    amount_text, _, window_text = head.partition("/")
    amount, window = _amount(what, amount_text), _WINDOW.fullmatch(window_text)
    burst, wait = amount, False
    for option in options:
        if option == "wait" and what in MAY_WAIT:
            wait = True
        elif option.startswith("burst="):
            burst = _amount(what, option.removeprefix("burst="))
        else:
            also = " and wait" if what in MAY_WAIT else ""
            raise InvalidField(field, text, f"{what}=amount/window, and behind it burst=N{also}")
    window_s = int(window[1]) * _SECONDS[window[2]] if window else 0
    if not amount or not burst:
        least, units = "above 0" if what == "cost" else "from 1", "s, m, h or d" if what in TIMES else "k or M"
        raise InvalidField(field, text, f"{what}=amount/window, amount and burst {least} to {MOST:,}, or with {units}")
    if not 0 < window_s <= LONGEST_WINDOW_S:
        raise InvalidField(field, text, f"{what}=amount/window, the window 1s to 366d in s, m, h or d")
    return Limit(what, amount, window_s, burst, wait)


def _amount(what: str, text: str) -> float | None:
    found = _AMOUNT.fullmatch(text)
    if not found:
        return None
    units = _SECONDS if what in TIMES else {"": 1, "k": 1000, "M": 1_000_000}
    amount = float(found[1]) * units.get(found[2], 0)
    return amount if 0 < amount <= MOST and (what == "cost" or amount >= 1) else None


def _plain(what: str, rest: str, text: str, field: str) -> float | int:
    try:
        number = float(rest)
    except ValueError:
        number = 0
    if what == "weight":
        if not 0.01 <= number <= 1000:
            raise InvalidField(field, text, "weight=0.01 to weight=1000")
        return number
    if not 1 <= number <= MOST or number != int(number):
        raise InvalidField(field, text, f"{what}=N with a whole number of at least 1")
    return int(number)


def _number(amount: float) -> str:
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:g}"
