"""Where webhooks may go: what is refused by its form, and what by the address it leads to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.destinations import Destinations, is_public, parse
from common.errors import DestinationRefused
from tests.hostile_urls import ADDRESSES, URLS


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_not_one_public_host_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450::8a"])
def test_the_address_of_a_host_on_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("url", [url for url in URLS if "[" in url or "@" in url or "%" in url])
def test_what_is_hostile_by_its_form_is_refused_before_anything_is_looked_up(url: str) -> None:
    with pytest.raises(DestinationRefused):
        Destinations().check_url(url)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://example.org", "example.org", "/"),
        ("https://EXAMPLE.org:8443/a/b?token=x", "example.org:8443", "/a/b?token=x"),
        ("https://example.org:443?x=1", "example.org", "/?x=1"),
        ("https://1.1.1.1/hook", "1.1.1.1", "/hook"),
        ("https://[2606:4700:4700::1111]:444/", "[2606:4700:4700::1111]:444", "/"),
    ],
)
def test_an_ordinary_address_has_its_parts(url: str, authority: str, path: str) -> None:
    target = Destinations().check_url(url)
    assert (target.authority, target.path) == (authority, path)


def test_what_is_shown_of_an_address_is_without_its_query() -> None:
    assert parse("https://example.org/a?token=secret").shown == "https://example.org/a?…"


def test_the_operator_may_exempt_single_addresses_and_networks() -> None:
    some = Destinations("127.0.0.1, 10.1.0.0/16, fd00::/8")
    for good in ("http://127.0.0.1:9/x", "https://10.1.2.3/", "http://[fd00::1]/"):
        some.check_url(good)
    for bad in ("http://127.0.0.2/", "https://10.2.0.1/", "https://[::ffff:127.0.0.1]/", "http://1.1.1.1/"):
        with pytest.raises(DestinationRefused):
            some.check_url(bad)


def test_http_is_for_exempt_addresses_alone_whatever_name_they_have() -> None:
    some = Destinations("10.1.0.0/16")
    target = some.check_url("http://intranet/hook")
    some.check(target, [ip_address("10.1.0.9")])
    with pytest.raises(DestinationRefused):
        some.check(target, [ip_address("1.1.1.1")])
    with pytest.raises(DestinationRefused):
        Destinations().check_url("http://example.org/")


def test_one_bad_address_among_good_ones_is_enough() -> None:
    target = Destinations().check_url("https://example.org/")
    with pytest.raises(DestinationRefused):
        Destinations().check(target, [ip_address("1.1.1.1"), ip_address("169.254.169.254")])


@given(st.text(max_size=60))
def test_no_text_makes_the_check_fail_in_another_way(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/"):
        try:
            Destinations().check_url(url)
        except DestinationRefused:
            continue
        assert url.isascii()
