"""Where Redis answers: one server, a cluster of them, or the master that sentinels name. Checked at start."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

CLUSTER, SENTINEL = "redis-cluster", "redis-sentinel"
#: Every scheme with an example, for the message that refuses another.
FORMS = {
    "redis": "redis://host:6379/0",
    "rediss": "rediss://host:6379/0",
    "unix": "unix:///path/of/socket",
    CLUSTER: "redis-cluster://host:6379,host:6379",
    SENTINEL: "redis-sentinel://host:26379,host:26379/mymaster/0",
}
PORTS = {CLUSTER: 6379, SENTINEL: 26379}
CREDENTIALS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address; of a single server only the scheme (redis-py reads the rest)."""

    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()
    master: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def single(self) -> bool:
        """Whether it names one server."""
        return self.scheme not in PORTS


def parse(url: str) -> Address:
    """The parts of an address, or a ValueError that says what is wrong and what is allowed."""
    parts = urlsplit(url)
    if parts.scheme not in FORMS or "://" not in url:
        raise ValueError(f"unknown scheme; allowed are {', '.join(FORMS.values())}")
    if parts.scheme not in PORTS:
        return Address(parts.scheme)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    nodes = tuple(_node(host, PORTS[parts.scheme]) for host in hosts)
    username, password = _text(parts.username), _text(parts.password)
    if parts.scheme == CLUSTER:
        _nothing_after(parts.path.strip("/"), parts.query)
        return Address(CLUSTER, nodes, username=username, password=password)
    master, db = _master(parts.path)
    return Address(SENTINEL, nodes, master, db, username, password, **_credentials(parts.query))


def _node(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if not colon or number.endswith("]"):  # no port: a name alone, or an IPv6 address alone
        host, number = text, str(port)
    if not host or not number.isdigit() or not 0 < int(number) < 65_536:
        raise ValueError(f"{text!r} is no host:port")
    return host.strip("[]"), int(number)


def _nothing_after(path: str, query: str) -> None:
    if path not in ("", "0") or query:
        raise ValueError(f"a cluster has database 0 and no options; like {FORMS[CLUSTER]}")


def _master(path: str) -> tuple[str, int]:
    name, _, db = path.strip("/").partition("/")
    if not name or not (db or "0").isdigit():
        raise ValueError(f"the master's name is missing or its database is no number; like {FORMS[SENTINEL]}")
    return unquote(name), int(db or 0)


def _credentials(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, strict_parsing=bool(query)))
    if unknown := sorted(set(options) - set(CREDENTIALS)):
        raise ValueError(f"unknown option {unknown[0]}; allowed are {', '.join(CREDENTIALS)}")
    return options


def _text(part: str | None) -> str | None:
    return None if part is None else unquote(part)
