"""How a delivery worker shares its slots among hosts."""

from __future__ import annotations

from workers.hosts import Hosts


def fill(hosts: Hosts, host: str) -> int:
    """Begin attempts at a host until the next would have to wait; returns how many."""
    count = 0
    while not hosts.wait_s(host):
        hosts.enter(host)
        count += 1
    return count


def test_a_host_that_nobody_knows_has_a_quarter_of_the_slots() -> None:
    hosts = Hosts(64)
    assert fill(hosts, "one") == 16
    assert fill(hosts, "two") == 16


def test_a_host_that_answers_quickly_has_most_of_them_and_its_deliveries_wait_briefly() -> None:
    hosts = Hosts(64)
    hosts.enter("quick")
    hosts.leave("quick", 20)
    assert fill(hosts, "quick") == 48
    assert hosts.wait_s("quick") < 0.1
    assert fill(hosts, "other") == 16


def test_a_host_that_stops_answering_is_one_among_many_again() -> None:
    hosts = Hosts(8)
    for took_ms in (20, None, 5000):
        hosts.enter("moody")
        hosts.leave("moody", took_ms)
    assert fill(hosts, "moody") == 2
    assert hosts.wait_s("moody") >= 0.5


def test_with_one_slot_every_host_has_its_turn() -> None:
    hosts = Hosts(1)
    assert fill(hosts, "one") == 1
    hosts.leave("one", None)
    assert hosts.wait_s("one") == 0
