"""The servers behind an address that take writes: the one it names, the one its sentinels name, or a cluster's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from redis.sentinel import Sentinel

from common.address import CLUSTER, Address, parse

#: A sentinel that does not answer within this is passed over.
SENTINEL_TIMEOUT_S = 1.0


@contextmanager
def masters(url: str, timeout_s: float) -> Iterator[dict[str, redis.Redis]]:
    """A client of each, by its host and port; closed at the end. Raises RedisError, OSError or ValueError."""
    address = parse(url)
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    with ExitStack() as clients:
        if address.single:
            yield {"": clients.enter_context(redis.Redis.from_url(url, **options))}
            return
        options |= {"username": address.username, "password": address.password, "db": address.db}
        nodes = _of_cluster(address, options) if address.scheme == CLUSTER else [_named(address)]
        yield {
            f"{host}:{port}": clients.enter_context(redis.Redis(host=host, port=port, **options))
            for host, port in nodes
        }


def _named(address: Address) -> tuple[str, int]:
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.nodes,
        sentinel_kwargs={
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "username": address.sentinel_username,
            "password": address.sentinel_password,
        },
    )
    try:
        host, port = sentinels.discover_master(address.master)  # type: ignore[no-untyped-call]
        return str(host), int(port)
    finally:
        for sentinel in sentinels.sentinels:
            sentinel.close()


def _of_cluster(address: Address, options: dict[str, Any]) -> list[tuple[str, int]]:
    why: Exception | None = None
    for host, port in address.nodes:
        with redis.Redis(host=host, port=port, **options) as client:
            try:
                rows: Any = client.execute_command("CLUSTER", "SLOTS")
            except redis.ResponseError:
                raise  # it answers, and is no cluster
            except (redis.RedisError, OSError) as error:
                why = error
                continue
        return sorted({(row[2][0] or host, row[2][1]) for row in rows})
    raise redis.ConnectionError(f"no node of the cluster answers ({why})")
