"""The lines of a batch's input, one at a time: read from the blob store piece by piece, decoded, checked.

An input is never in memory as a whole, only one line of it and the piece that it was read with.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.batches import BatchAsked, LineError, Stretch
from common.blobs import Blobs
from common.errors import BodyTooLarge, JarvisError, MalformedBody, NotFound, StoreUnavailable, UnknownModel
from common.settings import Settings
from producer import problems
from producer.batch import Turns
from producer.batches.endpoints import ENDPOINTS, Here, Prepared
from producer.body import decode_object
from producer.openai.errors import native

PIECE = 1 << 20
#: A stretch has no more lines after so many bytes.
STRETCH_BYTES = 1 << 20
STRETCH_JOBS = 64
MOST_ERRORS = 100
MOST_TEXTS = 50_000
LONGEST_ID = 512
FIELDS = ("custom_id", "method", "url", "body")


class Read(NamedTuple):
    """One line of the input that is not blank: its number (from 1), where it begins and where the next one does."""

    number: int
    start: int
    end: int
    text: bytes


class Line(NamedTuple):
    """One request of a batch."""

    number: int
    custom_id: str
    prepared: Prepared


class WrongLine(JarvisError):
    """A line of a batch is not acceptable."""

    def __init__(self, errors: list[LineError], custom_id: str = "") -> None:
        self.errors = errors
        self.custom_id = custom_id
        super().__init__(errors[0].message)


@dataclass(slots=True)
class Checked:
    """What a check of all lines found: stretches to work on, or what is wrong."""

    total: int = 0
    plan: list[Stretch] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)
    models: set[str] = field(default_factory=set)

    @property
    def model(self) -> str | None:
        """The one model that all lines name."""
        return next(iter(self.models)) if len(self.models) == 1 else None


async def read(blobs: Blobs, blob: str, longest: int, part: Stretch | None = None) -> AsyncIterator[Read]:
    """The lines of an input, or of a stretch of it. Raises BodyTooLarge, FileNotFoundError."""
    start, number = (part.offset, part.line) if part else (0, 1)
    last = part.end if part else await blobs.length(blob)
    rest, at = b"", start
    while at < last:
        piece = await blobs.read(blob, at, min(PIECE, last - at))
        if not piece:
            raise FileNotFoundError(blob)  # it was longer
        at += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            end = start + len(text) + 1
            if text.strip():
                yield Read(number, start, end, text)
            start, number = end, number + 1
        if len(rest) > longest:
            raise BodyTooLarge(longest, f"line {number}")
    if rest.strip():
        yield Read(number, start, last, rest)


async def check(asked: BatchAsked, here: Here, settings: Settings, lives: Any) -> Checked:
    """Check every line; `lives` is called for each and raises when the work is to stop."""
    checked, here = Checked(), here.for_batch(asked)
    cut = _Cutting(checked, max(1, min(STRETCH_JOBS, settings.batch_jobs // 4)))
    seen: set[bytes] = set()
    texts, turns = 0, Turns()
    try:
        async for one in read(here.files.blobs, asked.blob, settings.max_body_bytes):
            lives()
            checked.total += 1
            if checked.total > settings.max_batch_lines:
                most = settings.max_batch_lines
                raise WrongLine([LineError("too_many_tasks", f"a batch has at most {most} lines", None, one.number)])
            try:
                line = await line_of(one, asked.endpoint, here)
                _once(line, seen)
                texts += line.prepared.texts
                cut.add(one, len(line.prepared.specs))
                checked.models.add(line.prepared.specs[0].model)
            except WrongLine as wrong:
                checked.errors += wrong.errors
            if texts > MOST_TEXTS:
                message = f"a batch embeds at most {MOST_TEXTS} texts"
                raise WrongLine([LineError("too_many_inputs", message, "body.input", one.number)])
            if len(checked.errors) >= MOST_ERRORS:
                break
            await turns.take()
    except WrongLine as wrong:  # of the whole file: no line that follows could mend it
        checked.errors += wrong.errors
    except BodyTooLarge as error:
        checked.errors.append(LineError("line_too_long", str(error)))
    cut.end()
    if not checked.total and not checked.errors:
        checked.errors.append(LineError("empty_file", "the input file has no lines", "input_file_id"))
    del checked.errors[MOST_ERRORS:]
    return checked


class _Cutting:
    """Cuts an input into stretches of about so many jobs."""

    def __init__(self, checked: Checked, jobs: int) -> None:
        self._plan = checked.plan
        self._most = jobs
        self._first: Read | None = None
        self._end = 0
        self._jobs = 0

    def add(self, one: Read, jobs: int) -> None:
        self._first = self._first or one
        self._end = one.end
        self._jobs += jobs
        if self._jobs >= self._most or self._end - self._first.start >= STRETCH_BYTES:
            self.end()

    def end(self) -> None:
        if self._first:
            self._plan.append(Stretch(self._first.start, self._end, self._first.number, self._jobs))
        self._first, self._jobs = None, 0


async def line_of(one: Read, endpoint: str, here: Here) -> Line:
    """A line as a request. Raises WrongLine with all that is wrong with it, StoreUnavailable."""
    try:
        asked = decode_object(one.text.removeprefix(b"\xef\xbb\xbf") if one.number == 1 else one.text)
    except JarvisError as error:
        message = f"This line is not parseable as valid JSON: {error}"
        raise WrongLine([LineError("invalid_json_line", message, None, one.number)]) from None
    wrong = [LineError(code, message, param, one.number) for code, message, param in _faults(asked, endpoint)]
    custom_id = asked.get("custom_id")
    if wrong:
        raise WrongLine(wrong, custom_id if isinstance(custom_id, str) else "")
    assert isinstance(custom_id, str)
    try:
        return Line(one.number, custom_id, await ENDPOINTS[endpoint](asked["body"], here))
    except StoreUnavailable:
        raise
    except JarvisError as error:
        raise WrongLine(_of_body(error, one.number), custom_id) from None


def _faults(asked: dict[str, Any], endpoint: str) -> list[tuple[str, str, str]]:
    faults: list[tuple[str, str, str]] = []
    for name in FIELDS:
        if asked.get(name) is None:
            faults.append(("missing_required_parameter", f"Missing required parameter: '{name}'.", name))
    for name in asked:
        if name not in FIELDS:
            faults.append(("unknown_parameter", f"there is no {native(name[:60])!r} in a line", name[:60]))
    if faults:
        return faults
    custom_id, url = asked["custom_id"], asked["url"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= LONGEST_ID:
        faults.append(("invalid_custom_id", f"it must be a text of 1 to {LONGEST_ID} characters", "custom_id"))
    if asked["method"] != "POST":
        faults.append(("invalid_method", "the only method of a batch is POST", "method"))
    if url != endpoint:
        message = f"The URL provided for this request does not match the batch endpoint, {endpoint}."
        faults.append(("url_mismatch", message, "url"))
    if not isinstance(asked["body"], dict):
        faults.append(("invalid_type", "it must be an object", "body"))
    return faults


def _once(line: Line, seen: set[bytes]) -> None:
    # 16 bytes each, however long they are.
    digest = hashlib.sha256(line.custom_id.encode()).digest()[:16]
    if digest in seen:
        message = (
            f"The custom_id '{line.custom_id[:64]}' for this request is a duplicate of another request. The custom_id"
            " parameter must be unique for each request in a batch."
        )
        raise WrongLine([LineError("duplicate_custom_id", message, "custom_id", line.number)], line.custom_id)
    seen.add(digest)


def _of_body(error: JarvisError, number: int) -> list[LineError]:
    if isinstance(error, MalformedBody):
        return [LineError("invalid_json_line", str(error), None, number)]
    if isinstance(error, NotFound):
        return [LineError("not_found", str(error), "body.file_id", number)]
    code = "model_not_found" if isinstance(error, UnknownModel) else "invalid_request"
    entries = problems.entries_of(error) or [{"field": None, "value": None, "message": str(error)}]
    return [LineError(code, _words(entry), _param(entry["field"]), number) for entry in entries]


def _param(name: str | None) -> str | None:
    return None if name is None else "body" if name == "body" else f"body.{native(name)}"


def _words(entry: dict[str, str | None]) -> str:
    value = "" if entry["value"] is None else f" is {entry['value']}"
    return native(f"{entry['field'] or 'body'}{value}: {entry['message']}")
