"""Limits as people write them."""

from __future__ import annotations

import pytest

from common.errors import InvalidField, SettingsInvalid
from common.limits import Limit, Policy
from common.policies import door, share
from common.settings import load_settings


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("requests=100/3600s", Limit("requests", 100, 3600, 100)),
        ("requests=60/60,burst=10", Limit("requests", 60, 60, 10)),
        ("tokens=10k/1m,wait", Limit("tokens", 10_000, 60, 10_000, True)),
        ("tokens=1.5M/1d", Limit("tokens", 1_500_000, 86_400, 1_500_000)),
        ("audio_seconds=2h/1d", Limit("audio_seconds", 7200, 86_400, 7200)),
        ("cost=0.5/1d", Limit("cost", 0.5, 86_400, 0.5)),
    ],
)
def test_a_limit_is_read_and_written_as_the_same(text: str, limit: Limit) -> None:
    assert Policy.parse([text]).limits == (limit,)
    assert Policy.parse([str(limit)]).limits == (limit,)


@pytest.mark.parametrize(
    "text",
    (
        "requests|requests=100|requests=0/60s|requests=-1/60s|requests=1e9/60s|requests=5/0s|requests=5/500d|tokens=1/2w"
        "|requests=5/60s,wait|requests=5/60s,burst=0|requests=5/60s,now|requests=5/60s/7|jobs=5/60s||in_progress=0"
        "|in_progress=inf|waiting=1.5|weight=0|weight=nan"
    ).split("|"),
)
def test_what_is_no_limit_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InvalidField) as refused:
        Policy.parse([text])
    assert refused.value.field == "limit"
    assert "=" in refused.value.allowed


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("requests=5/60s,wait", "requests=amount/window, and behind it burst=N"),
        ("tokens=5/60s,now", "tokens=amount/window, and behind it burst=N and wait"),
        ("tokens=0/60s", "tokens=amount/window, amount and burst from 1 to 1,000,000,000,000, or with k or M"),
        (
            "audio_seconds=2w/1d",
            "audio_seconds=amount/window, amount and burst from 1 to 1,000,000,000,000, or with s, m, h or d",
        ),
        ("requests=100", "requests=amount/window, the window 1s to 366d in s, m, h or d"),
    ],
)
def test_the_refusal_says_which_part_of_a_limit_is_wrong(text: str, allowed: str) -> None:
    with pytest.raises(InvalidField) as refused:
        Policy.parse([text])
    assert refused.value.allowed == allowed


def test_what_a_key_says_wins_over_its_tier() -> None:
    tier = Policy.parse(["requests=100/1h", "requests=10/1m", "tokens=1k/1m", "in_progress=2", "weight=3"])
    own = Policy.parse(["requests=5/1h", "in_progress=7"]).over(tier)
    assert own.texts() == ["requests=5/3600s", "tokens=1000/60s", "in_progress=7", "weight=3"]


def test_the_door_and_the_claim_each_get_their_own_part() -> None:
    policy = Policy.parse(["requests=5/1m", "tokens=100/1m,wait", "waiting=9", "in_progress=2", "weight=4"])
    assert door(policy) == {"limits": [["requests", 5, 60_000, 5]], "waiting": 9}
    assert share(policy) == {"weight": 4, "in_progress": 2, "limits": [["tokens", 100, 60_000, 100]]}
    assert (door(Policy()), share(Policy())) == ({}, {})


def test_a_tier_with_a_wrong_limit_is_named_at_start() -> None:
    with pytest.raises(SettingsInvalid, match="free is 'requests=many'"):
        load_settings(tiers={"free": ["requests=many"]})
