"""Addresses of Redis: what each form means, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from common.address import FORMS, Address, parse
from common.errors import SettingsInvalid
from common.settings import load_settings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://host:1/2", Address("redis")),
        ("rediss://host", Address("rediss")),
        ("unix:///a/socket", Address("unix")),
        ("redis-cluster://a:1,b", Address("redis-cluster", (("a", 1), ("b", 6379)))),
        ("redis-cluster://a:1/0", Address("redis-cluster", (("a", 1),))),
        ("redis-cluster://[::1]:7,[::2]", Address("redis-cluster", (("::1", 7), ("::2", 6379)))),
        (
            "redis-cluster://user:p%40ss@a:1,b:2/",
            Address("redis-cluster", (("a", 1), ("b", 2)), username="user", password="p@ss"),
        ),
        ("redis-sentinel://a,b:2/mine", Address("redis-sentinel", (("a", 26379), ("b", 2)), "mine")),
        (
            "redis-sentinel://:pw@a:1/mine/3?sentinel_username=u&sentinel_password=s%26",
            Address("redis-sentinel", (("a", 1),), "mine", 3, "", "pw", "u", "s&"),
        ),
    ],
)
def test_an_address_is_read(url: str, address: Address) -> None:
    assert parse(url) == address
    assert parse(url).single == (not address.nodes)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis-clusters://a:1", FORMS["redis-sentinel"]),
        ("http://a:1", "unknown scheme"),
        ("host:6379", "unknown scheme"),
        ("", "unknown scheme"),
        ("redis-cluster://a:1,b:x", "'b:x' is no host:port"),
        ("redis-cluster://a:70000", "'a:70000' is no host:port"),
        ("redis-cluster://", "is no host:port"),
        ("redis-cluster://a:1,", "is no host:port"),
        ("redis-cluster://a:1/2", "database 0"),
        ("redis-cluster://a:1?db=0", "no options"),
        ("redis-sentinel://a:1", "master's name is missing"),
        ("redis-sentinel://a:1/mine/two", "no number"),
        ("redis-sentinel://a:1/mine?db=2", "unknown option db"),
    ],
)
def test_a_wrong_address_stops_the_start_and_says_what_is_allowed(url: str, said: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(redis_url=url)
    assert "JARVIS_REDIS_URL" in str(refused.value)
    assert said in str(refused.value)
