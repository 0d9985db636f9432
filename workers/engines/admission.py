"""How many requests an engine can serve at once, learnt from what its scheduler says at each step.

When the KV cache is too small for the batch, running requests are put back and computed again later, and new ones
wait inside the engine, where no lane and no user's turn counts. Then fewer are admitted; while there is room, more.
"""

from __future__ import annotations

#: What is left after a cut, of the requests that ran when the cache was full: those that stay will still grow.
CUT = 0.75
#: More are admitted only if another one, like those that run, would leave this share of the cache or more unused.
SPARE = 0.1


class Admission:
    """A number between `least` and `slots` that follows the KV cache."""

    def __init__(self, slots: int, least: int) -> None:
        self.slots = slots
        self.least = min(least, slots)
        self.allowed = slots
        self._finished = 0

    def note(self, running: int, waiting: int, usage: float, finished: int) -> None:
        """Take in one step: requests in the batch and before it, the KV cache's use (0 to 1), requests that ended."""
        held, with_another = running + waiting, usage * (running + 1) / max(running, 1)
        self._finished += finished
        if waiting and with_another > 1:
            # Once for each time that it is full: the next cut waits until this one has taken hold.
            if held <= self.allowed:
                self.allowed = max(self.least, int(CUT * running))
            self._finished = 0
        elif self._finished >= self.allowed:
            # One generation of requests has gone through since the last change.
            self._finished = 0
            if held >= self.allowed and with_another < 1 - SPARE:
                self.allowed = min(self.slots, self.allowed + max(1, self.allowed // 4))
