"""What a process has made by the time it is ready, it keeps: the garbage collector need not look at it again."""

from __future__ import annotations

import gc

#: Objects made since the last look at the youngest (Python's own: 700). What hundreds of requests that wait hold would
#: be looked at again and again before it goes; in a web process under load that took a twelfth of its time.
YOUNG = 10_000


def settle_heap() -> None:
    """Take everything there is now out of the collector's sight, and have it look less often at what comes.

    With an engine's libraries loaded, one look at all of it stops the process for a third of a second, again and again
    while requests come in (`python -m ops.bench generation`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
