"""How many attempts a delivery worker has under way to each host, so that one that hangs never holds them all up."""

from __future__ import annotations

import random
import time
from collections import Counter

#: A host that answered so quickly, so recently, may have most of the slots; any other one a quarter.
QUICK_MS = 1000
TRUSTED_S = 30.0
#: Hosts that are remembered as quick; with more of them none is crowded enough for it to matter.
MOST_HOSTS = 10_000


class Hosts:
    """The hosts of the attempts under way."""

    def __init__(self, slots: int) -> None:
        self._part = max(1, slots // 4)
        self._most = max(1, slots - self._part)
        self._under_way: Counter[str] = Counter()
        self._trusted: dict[str, float] = {}

    def wait_s(self, host: str) -> float:
        """How long another attempt at this host should wait: 0 if it may be made now."""
        trusted = self._trusted.get(host, 0) > time.monotonic()
        if self._under_way[host] < (self._most if trusted else self._part):
            return 0
        return (0.05 if trusted else 1.0) * random.uniform(0.5, 1.5)

    def enter(self, host: str) -> None:
        """An attempt begins."""
        self._under_way[host] += 1

    def leave(self, host: str, took_ms: int | None) -> None:
        """An attempt is over; `took_ms` until there was an answer, None when there was none."""
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]
        if took_ms is None or took_ms > QUICK_MS:
            self._trusted.pop(host, None)
            return
        if len(self._trusted) >= MOST_HOSTS:
            self._trusted.clear()
        self._trusted[host] = time.monotonic() + TRUSTED_S
