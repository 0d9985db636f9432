"""The states of a job and the one table of allowed transitions.

The scripts write states; this table says which moves they may make, a test compares it with the
diagram in the README, and another with what the scripts really do.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. Spelled as on the wire."""

    SCHEDULED = "scheduled"  #: Accepted, waits for its time (a delay, or the pause after a handled failure).
    QUEUED = "queued"  #: Waits for a worker's free slot.
    IN_PROGRESS = "in_progress"  #: A worker holds its lease and runs it.
    COMPLETED = "completed"  #: Its result is stored.
    INCOMPLETE = "incomplete"  #: Its result is stored, but the model's context ended before the answer did.
    FAILED = "failed"  #: It will not be run again; `error` says why.
    CANCELLED = "cancelled"  #: Somebody asked for it to stop.
    EXPIRED = "expired"  #: Its time to live ended before its result was there.


TERMINAL = frozenset({State.COMPLETED, State.INCOMPLETE, State.FAILED, State.CANCELLED, State.EXPIRED})

#: From each state (None: not yet submitted) to where it may go. Terminal states never change.
TRANSITIONS: dict[State | None, frozenset[State]] = {
    None: frozenset({State.SCHEDULED, State.QUEUED}),
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED, State.EXPIRED}),
    State.QUEUED: frozenset({State.IN_PROGRESS, State.CANCELLED, State.EXPIRED}),
    State.IN_PROGRESS: TERMINAL | {State.QUEUED, State.SCHEDULED},
} | {state: frozenset() for state in TERMINAL}

#: One letter each, as a job's history keeps them (`common/lua/job.lua` has the same table).
CODES = {
    State.SCHEDULED: "s",
    State.QUEUED: "q",
    State.IN_PROGRESS: "p",
    State.COMPLETED: "c",
    State.INCOMPLETE: "i",
    State.FAILED: "f",
    State.CANCELLED: "x",
    State.EXPIRED: "e",
}
STATES = {code: state for state, code in CODES.items()}
