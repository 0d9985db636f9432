"""From the bytes of a request to plain values, or an error that names the field; nothing else decodes a body.

What gets through is a JSON object of finite numbers and well-formed Unicode, at most `max_body_bytes` long, or a list
of which each member is decoded when its turn comes. The fast path is one decode; only what fails it is read again, to
find out which field is at fault.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request

from common.errors import InvalidField, MalformedBody
from producer.problems import Refusal

SMALL_BYTES = 16 * 1024  # what is smaller has no room for a crowd of fields
MOST_NAMES = 100  # fields of one object; no object of ours has half as many
LONGEST_LIST = 2048  # of longer lists the checks read no more, they are refused for their length
DIAGNOSED_BYTES = 1024 * 1024  # a larger broken body is refused without a search for its field
_NUMBERS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_LIST = re.compile(rb"[ \t\r\n]*\[")
_members = msgspec.json.Decoder(list[msgspec.Raw])
TOO_DEEP = "it is nested too deeply"


async def json_body(request: Request) -> dict[str, Any] | list[msgspec.Raw]:
    """The body: a JSON object, or the undecoded members of a list.

    Raises MalformedBody, InvalidField, BodyTooLarge or Refusal (415).
    """
    check_content_type(request)
    body = await request.body()
    return decode_list(body) if _LIST.match(body) else decode_object(body)


def check_content_type(request: Request) -> None:
    """Refuse what is not declared as JSON: a foreign page in a browser can post all other types."""
    declared = request.headers.get("content-type", "")
    media = declared.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise Refusal(415, "Content-Type", declared or None, "application/json")
    check_encoding(request)


def check_encoding(request: Request) -> None:
    """Refuse a compressed body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, "Content-Encoding", encoding, "no encoding; the body is read as it is")


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode strictly: no NaN, no lone surrogates, no bottomless nesting, and an object on top."""
    if not body:
        raise MalformedBody("it is empty; a JSON object is expected")
    with _explained(body):
        return _object(body)


def decode_list(body: bytes) -> list[msgspec.Raw]:
    """The members of a list, which must still be decoded: making half a million of them at once takes seconds."""
    with _explained(body):
        return _members.decode(body)


def decode_item(item: msgspec.Raw) -> dict[str, Any]:
    """A member of a list: an object, decoded as strictly as if it had come alone."""
    return decode_object(bytes(item))


@contextmanager
def _explained(body: bytes) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise MalformedBody(TOO_DEEP) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _diagnosed(body, error) from None


def _object(body: bytes) -> dict[str, Any]:
    value = msgspec.json.decode(body)
    if not isinstance(value, dict):
        raise InvalidField("body", _kind(value), "a JSON object")
    if len(body) > SMALL_BYTES:
        _refuse_crowds(value, "")
    return value


def _refuse_crowds(value: Any, path: str) -> None:
    # Every unknown name would become an error of its own: half a million of them cost seconds and half a gigabyte.
    if isinstance(value, dict):
        if len(value) > MOST_NAMES:
            raise InvalidField(path or "body", f"an object of {len(value)} fields", f"at most {MOST_NAMES} fields")
        for name, inner in value.items():
            _refuse_crowds(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value[:LONGEST_LIST]):
            if isinstance(inner, dict | list):
                _refuse_crowds(inner, f"{path}[{number}]")


def _diagnosed(body: bytes, error: Exception) -> MalformedBody | InvalidField:
    if len(body) > DIAGNOSED_BYTES:
        return MalformedBody(_reason(error))
    try:
        # Python's decoder lets through what JSON forbids, so the culprit can be looked at where it stands.
        value = json.loads(body.decode("utf-8", "surrogatepass"))
        return next(_faults(value, "")) if isinstance(value, dict | list) else MalformedBody(_reason(error))
    except RecursionError:
        return MalformedBody(TOO_DEEP)
    except (ValueError, StopIteration):
        return MalformedBody(_reason(error))


def _faults(value: Any, path: str) -> Iterator[InvalidField]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if _broken(name):
                yield InvalidField(path or "body", name, "names of well-formed Unicode")
            yield from _faults(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _faults(inner, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield InvalidField(path, _NUMBERS.get(str(value), value), "a finite number")
    elif isinstance(value, str) and _broken(value):
        yield InvalidField(path, value, "well-formed Unicode (no lone surrogates)")


def _broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start})"
    return str(error)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
