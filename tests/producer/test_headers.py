"""Prefer and Idempotency-Key, as their specifications write them."""

from __future__ import annotations

import time

import pytest
from starlette.datastructures import Headers

from producer.headers import Preferences, idempotency_key, preferences


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], Preferences()),
        (["wait=5"], Preferences(5)),
        (["wait"], Preferences(60)),  # alone: as long as the server would
        (["wait=0"], Preferences(0)),
        (["wait=999"], Preferences(60)),
        (["wait=" + "9" * 5000], Preferences(60)),
        (["respond-async"], Preferences(None, True)),
        (["respond-async, wait=10"], Preferences(10, True)),
        (["Respond-Async", "WAIT=10"], Preferences(10, True)),  # names are case-insensitive, headers may repeat
        (["wait=5, wait=9"], Preferences(5)),  # the first of a name counts
        (['wait="7"'], Preferences(7)),
        (["wait=7; foo=bar , return=minimal"], Preferences(7)),
        (["wait=soon"], Preferences()),  # what is malformed is ignored
        (["wait=-1, handling=lenient"], Preferences()),
        (["wait=１"], Preferences()),  # a digit, but none of ASCII
        ([", ,=,;"], Preferences()),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(given: list[str], expected: Preferences) -> None:
    headers = Headers(raw=[(b"prefer", value.encode("utf-8")) for value in given])
    assert preferences(headers, 60) == expected


def test_a_hostile_prefer_costs_no_time() -> None:
    started = time.perf_counter()
    preferences(Headers({"prefer": "a" * 32_000 + "@"}), 60)
    preferences(Headers({"prefer": "a;" * 16_000 + "," * 16_000}), 60)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(
    ("preference", "finished", "applied"),
    [
        (Preferences(), False, None),
        (Preferences(5), True, "wait=5"),
        (Preferences(5, True), True, "wait=5"),
        (Preferences(5, True), False, "wait=5, respond-async"),
        (Preferences(None, True), False, "respond-async"),
    ],
)
def test_what_was_applied_is_said(preference: Preferences, finished: bool, applied: str | None) -> None:
    assert preference.applied(finished) == applied


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        ("bare", "bare"),
        (r'"a\"b\\c"', r'a"b\c'),
        ("a b", "a b"),
        ("k" * 255, "k" * 255),
    ],
)
def test_a_key_may_be_quoted_or_bare(given: str, key: str) -> None:
    assert idempotency_key(Headers({"Idempotency-Key": given})) == key
