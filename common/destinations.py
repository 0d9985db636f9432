"""Where a webhook may go: https to public addresses, and nowhere else unless the operator says so.

A name is checked by the addresses it leads to, at every attempt, and each of them must be good: what a name leads to
can change between two looks, so whoever connects does so to an address that was checked (`common/egress.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from common.errors import DestinationRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2048
ALLOWED = "an https:// address of a public host, at most 2,048 characters, without a user, password or fragment"
#: `ipaddress.is_global` is not enough: it is true for addresses that carry another one inside, for multicast and more.
DENIED = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID, benchmarking
        "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
#: All IPv6 that is given out to anybody. Outside: loopback, link and site local, multicast, unique local, mapped and
#: translated IPv4 (`::127.0.0.1`, `::ffff:0:0/96`, `::ffff:0:0:0/96`), NAT64 (`64:ff9b::/96`, `64:ff9b:1::/48`).
GIVEN_OUT = IPv6Network("2000::/3")
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?"
    r"(?P<target>[/?][!$%&'()*+,./0-9:;=?@A-Z_a-z~\[\]-]*)?",
    re.ASCII,
)
_NUMBER = re.compile(r"(?:0[xX][0-9A-Fa-f]*|\d+)\.?")


class Target(NamedTuple):
    """A webhook's address in its parts; `address` when the host is one and no name."""

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        path, question, _ = self.path.partition("?")
        return f"{self.scheme}://{self.authority}{path}{question and '?…'}"


class Destinations:
    """Says of addresses whether a webhook may go there."""

    def __init__(self, allow: str = "") -> None:
        self.allow = networks_of(allow)

    def check_url(self, url: str) -> Target:
        """The parts of an address; raises DestinationRefused for one that no attempt could ever reach."""
        target = parse(url)
        if target.address is not None:
            self.check(target, [target.address])
        elif target.scheme == "http" and not self.allow:
            raise DestinationRefused("it is not https")
        return target

    def check(self, target: Target, addresses: Iterable[Address]) -> None:
        """Raise DestinationRefused unless a webhook may go to each of the addresses that its host has."""
        for address in addresses:
            if self._exempt(address):
                continue
            if not is_public(address):
                raise DestinationRefused(f"{address} is not a public address")
            if target.scheme == "http":
                raise DestinationRefused(f"it is not https, and {address} is not in webhook_allow")

    def _exempt(self, address: Address) -> bool:
        return any(address in network for network in self.allow)


def is_public(address: Address) -> bool:
    """Whether this is the address of one host on the internet, and leads to no other one."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in GIVEN_OUT):
        return False
    return address.is_global and not any(address in network for network in DENIED)


def parse(url: str) -> Target:
    """An address in its parts, by a grammar too narrow for two readings. Raises DestinationRefused."""
    found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if found is None:
        raise DestinationRefused("it has a part that is not allowed")
    scheme, host = found["scheme"], found["host"].strip("[]").lower()
    port = int(found["port"] or {"https": 443, "http": 80}[scheme])
    if not 1 <= port <= 65_535 or len(host) > 253:
        raise DestinationRefused("its host or port is not one")
    path = found["target"] or "/"
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}", _literal(host, found["host"]))


def _literal(host: str, written: str) -> Address | None:
    """The address that a host is, if it is one. 2130706433, 0x7f.1 and 0177.1 are ways to hide one: refused."""
    if not written.startswith("[") and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return None
    try:
        return IPv6Address(host) if written.startswith("[") else IPv4Address(host)
    except ValueError:
        raise DestinationRefused("its host is an address in no form that is taken here") from None


def networks_of(text: str) -> tuple[Network, ...]:
    """The networks of a list with commas; raises ValueError naming what is none."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def address_of(text: str) -> Address:
    """An address as the resolver writes it."""
    return ip_address(text)
