"""The two request headers that change what a submit does: Prefer (RFC 7240), Idempotency-Key (IETF draft 07)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from producer.problems import Refusal

LONGEST_KEY = 255
KEY_ALLOWED = f'1 to {LONGEST_KEY} printable ASCII characters, as "quoted" string or bare'


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a caller prefers. `wait_s` is None when it did not ask to wait."""

    wait_s: int | None = None
    respond_async: bool = False

    def applied(self, finished: bool) -> str | None:
        """The value of Preference-Applied: what the answer was made by."""
        waited = [] if self.wait_s is None else [f"wait={self.wait_s}"]
        return ", ".join(waited + (["respond-async"] if self.respond_async and not finished else [])) or None


def preferences(headers: Headers, wait_max_s: float) -> Preferences:
    """Read Prefer; what is unknown or malformed is ignored, as the RFC asks, and a long wait is shortened."""
    given: dict[str, str] = {}
    for part in ",".join(headers.getlist("prefer")).split(","):
        name, _, value = part.partition(";")[0].partition("=")
        given.setdefault(name.strip().lower(), value.strip().strip('"'))  # the first one of a name counts
    return Preferences(_seconds(given.get("wait"), int(wait_max_s)), "respond-async" in given)


def _seconds(text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not text:
        return most  # `wait` alone: as long as we would
    return min(int(text[:9]), most) if text.isascii() and text.isdigit() else None


def wants_events(headers: Headers) -> bool:
    """Whether the caller would rather read the job's events than its record."""
    return any(part.strip().lower().startswith("text/event-stream") for part in headers.get("accept", "").split(","))


def idempotency_key(headers: Headers) -> str | None:
    """Read Idempotency-Key, quoted or bare; raises Refusal (400) for one that can not be a key."""
    given = headers.getlist("idempotency-key")
    if not given:
        return None
    key = _unquoted(given[0].strip())
    if len(given) > 1 or key is None or not 1 <= len(key) <= LONGEST_KEY:
        raise Refusal(400, "Idempotency-Key", ", ".join(given), KEY_ALLOWED)
    return key


def _unquoted(text: str) -> str | None:
    if not text.isascii() or not text.isprintable():
        return None
    if not text.startswith('"'):
        return text
    whole = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', text)
    return re.sub(r"\\(.)", r"\1", whole[1]) if whole else None
