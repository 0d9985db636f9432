"""A list of jobs in one request: all are checked before any is queued, then each has an answer of its own.

No list, however long, keeps this process from its other callers for more than a few milliseconds at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from common.access import Principal
from common.errors import InvalidField, JarvisError, NotFound, NotPermitted, StoreUnavailable
from common.jobs import JobSpec, Submitted
from common.queue import SUBMIT_BATCH, Key
from common.results import Results
from producer import problems
from producer.body import decode_item
from producer.explain import MAX_ENTRIES, Entry, Invalid
from producer.record import new_record, record_out
from producer.submit import Submitter, key_of

MOST_JOBS = 1_000
TURN_S = 0.005

Answer = Submitted | JarvisError


class Turns:
    """Lets others run when this has run for a while."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def take(self) -> None:
        """Go on at once, or after everyone else had a turn."""
        if time.perf_counter() - self._since > TURN_S:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


async def submit(
    submitter: Submitter, who: Principal, items: Sequence[msgspec.Raw], idempotency_key: str | None
) -> list[tuple[JobSpec, Answer]]:
    """Accept jobs in order; one that is refused has the reason in its place.

    Raises InvalidField before any is queued, and the first one's reason when none was accepted.
    """
    specs, keys = await _checked(submitter, who, items, idempotency_key)
    specs = [await submitter.with_recording_stored(spec) for spec in specs]
    answers: list[Answer] = []
    for start in range(0, len(specs), SUBMIT_BATCH):
        end = start + SUBMIT_BATCH
        try:
            answers += await submitter.queue.submit_each(specs[start:end], keys[start:end])
        except StoreUnavailable as error:
            answers += [error] * (len(specs) - start)
            break
    for spec, answer in zip(specs, answers, strict=True):
        await submitter.forget_recording(spec, answer)
        submitter.learn(spec, answer)
    if all(isinstance(answer, JarvisError) for answer in answers):
        raise answers[0]  # type: ignore[misc]
    return list(zip(specs, answers, strict=True))


async def _checked(
    submitter: Submitter, who: Principal, items: Sequence[msgspec.Raw], idempotency_key: str | None
) -> tuple[list[JobSpec], list[Key | None]]:
    if not 1 <= len(items) <= MOST_JOBS:
        raise InvalidField("body", f"a list of {len(items)}", f"1 to {MOST_JOBS} jobs")
    specs: list[JobSpec] = []
    keys: list[Key | None] = []
    wrong: list[Entry] = []
    turns = Turns()
    for number, item in enumerate(items):
        try:
            spec = await submitter.spec_of(decode_item(item), who)
            # A newline is in no caller's key, so that no key is another one's with a number.
            keys.append(key_of(spec, f"{idempotency_key}\n{number}" if idempotency_key else None))
            specs.append(await submitter.metering.measured(submitter.outliving_its_delay(spec)))
        except NotPermitted:
            raise
        except JarvisError as error:
            wrong += [_within(number, entry) for entry in problems.entries_of(error) or []]
            if len(wrong) >= MAX_ENTRIES:
                break
        await turns.take()
    if wrong:
        raise Invalid(wrong[:MAX_ENTRIES])
    return specs, keys


def _within(number: int, entry: Entry) -> Entry:
    field = entry["field"]
    return {**entry, "field": f"[{number}]" if field in (None, "body") else f"[{number}].{field}"}


async def documents(results: Results, answered: Sequence[tuple[JobSpec, Answer]], path: str) -> list[dict[str, Any]]:
    """What each job's entry in the answer is: its record, without its place, or why it was refused."""
    settings = results.settings
    records = {a.id: new_record(a, spec, settings) for spec, a in answered if isinstance(a, Submitted)}
    records |= {
        record.id: record for record in await results.records([i for i, known in records.items() if known is None])
    }
    out = []
    turns = Turns()
    for number, (_, answer) in enumerate(answered):
        if isinstance(answer, JarvisError):
            out.append(_refused(number, answer, path))
        elif record := records[answer.id]:
            out.append(record_out(record))
        else:
            out.append(_refused(number, NotFound(answer.id), path))
        await turns.take()
    return out


def _refused(number: int, error: JarvisError, path: str) -> dict[str, Any]:
    document = problems.document_of(error, path)
    return {"object": "job.refused", "status": document["status"], "index": number, "error": document}


def retry_after_s(answered: Sequence[tuple[JobSpec, Answer]]) -> int:
    """When the refused ones may be sent again; a second, to ask for the others, when none was refused."""
    return max(math.ceil(getattr(answer, "retry_after_s", 1) or 1) for _, answer in answered)
