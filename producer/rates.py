"""How the limits of a request's key stand, in the headers of its answer.

`RateLimit-Policy` and `RateLimit` (IETF draft ietf-httpapi-ratelimit-headers) name every limit; `x-ratelimit-*` are
those that OpenAI's clients read, of one window each: the one with the least left.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from functools import lru_cache

from common.errors import LimitReached
from common.limits import Left

#: Units other than requests are registered nowhere, and have a parameter of ours.
UNITS = {"tokens": "tokens", "audio_seconds": "audio-seconds", "cost": "cost-micros"}


Headers = list[tuple[bytes, bytes]]


class Standing:
    """What is known of the limits at the end of one request; several jobs of it leave what is least."""

    def __init__(self) -> None:
        self.limits: tuple[Left, ...] = ()
        self.refused: LimitReached | None = None

    def note(self, limits: tuple[Left, ...]) -> None:
        """Learn how the limits stand after one job."""
        if not self.limits:
            self.limits = limits
        elif limits != self.limits:
            least = {one.name: one for one in self.limits}
            least |= {one.name: one for one in limits if one.name not in least or one.left <= least[one.name].left}
            self.limits = tuple(least.values())

    def headers(self) -> Headers:
        """The headers of the answer; none for who has no limits."""
        if not self.limits:
            return []
        return _headers(self.limits, self.refused.retry_after_s if self.refused else None)


@lru_cache(maxsize=256)  # requests that went to Redis together hear the same
def _headers(limits: tuple[Left, ...], retry_after_s: float | None) -> Headers:
    out = {
        "ratelimit-policy": ", ".join(map(_policy, limits)),
        "ratelimit": ", ".join(_left(one, retry_after_s) for one in limits),
    }
    for what in ("requests", "tokens"):
        some = [one for one in limits if one.what == what]
        if some:
            least = min(some, key=lambda one: (one.left, -one.reset_ms))
            out[f"x-ratelimit-limit-{what}"] = f"{least.amount:.0f}"
            out[f"x-ratelimit-remaining-{what}"] = f"{least.left:.0f}"
            out[f"x-ratelimit-reset-{what}"] = duration(least.reset_ms)
    return [(name.encode(), value.encode()) for name, value in out.items()]


def _left(one: Left, retry_after_s: float | None) -> str:
    reset_s = math.ceil(one.reset_ms / 1000)
    if retry_after_s is not None:  # the draft wants none that is earlier than this
        reset_s = min(reset_s, math.ceil(retry_after_s))
    return f'"{one.name}";r={_whole(one.what, one.left)};t={reset_s}'


_standing: ContextVar[Standing | None] = ContextVar("standing", default=None)


def watch() -> Standing:
    """Gather what this request learns of its key's limits, in whichever of its tasks."""
    standing = Standing()
    _standing.set(standing)
    return standing


def note(limits: tuple[Left, ...]) -> None:
    """The queue has said how the limits stand."""
    if standing := _standing.get():
        standing.note(limits)


def note_refusal(error: LimitReached) -> None:
    """The queue has refused a job for a limit."""
    if standing := _standing.get():
        standing.note(error.limits)
        standing.refused = error


def duration(ms: int) -> str:
    """A duration as OpenAI writes it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    tail = f"{seconds}.{rest:03d}".rstrip("0") if rest else str(seconds)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{tail}s"


def _policy(one: Left) -> str:
    unit = f';jarvis-unit="{UNITS[one.what]}"' if one.what in UNITS else ""
    return f'"{one.name}";q={_whole(one.what, one.amount)};w={one.window_s}{unit}'


def _whole(what: str, amount: float) -> int:
    return int(amount * 1_000_000) if what == "cost" else int(amount)
