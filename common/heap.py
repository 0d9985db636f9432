"""What a process has made by the time it is ready, it keeps: the garbage collector need not look at it again."""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """Take everything there is now out of the collector's sight.

    With an engine's libraries loaded, one look at all of it stops the process for a third of a second, again and again
    while requests come in (`python -m ops.bench generation`).
    """
    gc.collect()
    gc.freeze()
