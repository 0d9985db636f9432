"""What pydantic found wrong, as entries that name the field, show its value and say what is allowed.

A value is shown short and never in full, whatever was sent: not a whole prompt, not a bottomless list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from common.errors import InvalidField, JarvisError, shown

Entry = dict[str, str | None]
MAX_ENTRIES = 20  # a body can be wrong in thousands of places; the first ones are enough to mend it
LONGEST_PATH = 200


class Invalid(InvalidField):
    """Some fields of the request have values that are not allowed."""

    def __init__(self, entries: list[Entry]) -> None:
        first = entries[0]
        self.entries = entries
        self.field = first["field"] or "body"
        self.value = first["value"] or ""
        self.allowed = first["message"] or ""
        JarvisError.__init__(self, f"{self.field} is {first['value'] or 'missing'}: {self.allowed}")


def invalid_body(error: ValidationError, whole: bool = False) -> Invalid:
    """The error for a body that is JSON but not what the route takes; `whole`: it was checked as no union's member."""
    details = error.errors(include_url=False)[:MAX_ENTRIES]
    return Invalid([_entry({**detail, "loc": ("body", *detail["loc"])} if whole else detail) for detail in details])


def invalid_parameters(details: Sequence[Any]) -> Invalid:
    """The error for a query, path or header parameter."""
    return Invalid([_entry(detail) for detail in details[:MAX_ENTRIES]])


def _entry(detail: Any) -> Entry:
    kind = str(detail["type"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_entry(detail)
    # The first part says which union member or which part of the request: nothing that a caller wrote.
    field = path_of(detail["loc"][1:]) or "body"
    value = None if kind == "missing" or field.endswith("secret") else summary(detail["input"])
    return {"field": field, "value": value, "message": _words(kind, str(detail["msg"]))}


def _tag_entry(detail: Any) -> Entry:
    field = str(detail["ctx"]["discriminator"]).strip("'")
    allowed = str(detail["ctx"].get("expected_tags", "")).replace("'", "")
    given = detail["input"].get(field)
    return {
        "field": field,
        "value": None if given is None else summary(given),
        "message": f"allowed: {allowed}" if allowed else "it is required",
    }


def _words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "it is required"
    return message.removeprefix("Value error, ").replace("Input should be", "it should be")


def path_of(parts: Sequence[str | int]) -> str:
    """A place in a body as a caller would write it: `input.messages[3].content`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text if len(text) <= LONGEST_PATH else text[: LONGEST_PATH - 1] + "…"


def summary(value: Any) -> str:
    """A value of a body in a few words."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str) and len(value) > 60:
        return f"{plain(shown(value[:60]))}… ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a very large number"  # printing it would take longer than refusing it
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return plain(shown(value))


def plain(text: str) -> str:
    """A value as `common.errors.shown` wrote it, without the quotes around a string."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
