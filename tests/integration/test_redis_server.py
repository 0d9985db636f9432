"""The servers that the other tests stand on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.redis_server import RedisServer


def test_each_test_finds_redis_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_what_another_test_left_behind_is_gone(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_a_killed_server_with_append_only_file_comes_back_with_its_data(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis(aof=True, config={"appendfsync": "always"})
    with server.client() as client:
        client.set("promise", "kept")
    server.kill9()
    with server.client() as client, pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
    server.restart()
    with server.client() as client:
        assert client.get("promise") == "kept"
