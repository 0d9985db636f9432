"""Checks what Jarvis needs before it starts: the settings, the Redis, the catalogue, the weights.

Every finding names its key and the value that was found; what is wrong here would lose jobs or stop a
process later.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from common.address import CLUSTER, FORMS, SENTINEL, parse
from common.catalogue import Catalogue
from common.errors import SettingsInvalid
from common.settings import Settings, mask

if TYPE_CHECKING:
    import redis

Level = Literal["ok", "warning", "wrong"]

OLDEST_REDIS = (6, 2)
COMPACT_BYTES = 1024  # the hash-max-listpack-value that keeps a job's record in its compact form
OTHER_VARIABLES = {"JARVIS_URL", "JARVIS_API_KEY"}  # ours, but no setting of a process


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    key: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.key} = {self.value}" + (f": {self.message}" if self.message else "")


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that these settings point to."""
    return [*_variables(), *_redis(settings), *_catalogue(settings), *_recurring(settings)]


def _variables() -> Iterator[Finding]:
    known = {f"JARVIS_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith("JARVIS_") and name.upper() not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield Finding("warning", name, repr(os.environ[name]), f"does nothing: no such setting{meant}")


def _redis(settings: Settings) -> Iterator[Finding]:
    import redis

    from ops.masters import masters

    address = mask(settings.redis_url)
    try:
        with masters(settings.redis_url, settings.redis_timeout_s) as clients:
            looks = {
                at: (dict(cast("dict[str, Any]", client.info())), _configuration(client))
                for at, client in clients.items()
            }
    except (redis.RedisError, OSError, ValueError) as error:
        yield Finding("wrong", "JARVIS_REDIS_URL", address, f"cannot be used: {error}{_way_out(settings)}")
        return
    modes = {str(information.get("redis_mode", "standalone")) for information, _ in looks.values()}
    yield _mode(settings, address, modes)
    for at, (information, configuration) in looks.items():
        of = f" of {at}" if at else ""
        for finding in _server(information, configuration, settings):
            yield replace(finding, key=finding.key + of)
    yield from _spread(settings, len(looks))


def _mode(settings: Settings, address: str, modes: set[str]) -> Finding:
    single = parse(settings.redis_url).single
    if single and modes != {"standalone"}:
        told = {"cluster": f"one node of a cluster: {FORMS[CLUSTER]}", "sentinel": f"a sentinel: {FORMS[SENTINEL]}"}
        message = f"this is {told.get(modes.pop(), 'no plain Redis')}"
        return Finding("wrong", "JARVIS_REDIS_URL", address, message)
    return Finding("ok", "JARVIS_REDIS_URL", address, "answers")


def _way_out(settings: Settings) -> str:
    return "; make run starts one" if parse(settings.redis_url).single else ""


def _server(information: dict[str, Any], configuration: dict[str, str], settings: Settings) -> Iterator[Finding]:
    yield _version(str(information.get("redis_version", "0")))
    yield _append_only(bool(information.get("aof_enabled")))
    yield _eviction(str(information.get("maxmemory_policy", "unknown")))
    yield _compact(configuration, settings.tune_redis)
    if parse(settings.redis_url).scheme == SENTINEL:
        yield _replicated(str(configuration.get("min-replicas-to-write", "unknown")))


def _replicated(least: str) -> Finding:
    if least == "0":
        message = "a master cut off from its replicas would accept jobs that a failover loses; set it to 1"
        return Finding("warning", "min-replicas-to-write", least, message)
    return Finding("ok", "min-replicas-to-write", least, "")


def _spread(settings: Settings, masters: int) -> Iterator[Finding]:
    if settings.shards < masters:
        message = f"the queues use {settings.shards} of the cluster's {masters} masters; set it to 16 or more"
        yield Finding("warning", "JARVIS_SHARDS", str(settings.shards), message)


def _configuration(client: redis.Redis) -> dict[str, str]:
    import redis

    try:
        return {
            name: value
            for asked in ("hash-max-*-value", "min-replicas-to-write")  # Redis 6.2 takes one name at a time
            for name, value in cast("dict[str, str]", client.config_get(asked)).items()
        }
    except redis.ResponseError:
        return {}  # CONFIG is closed on many hosted servers


def _version(version: str) -> Finding:
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < OLDEST_REDIS:
        return Finding("wrong", "redis_version", version, "6.2 is the oldest that Jarvis runs on")
    return Finding("ok", "redis_version", version, "")


def _append_only(on: bool) -> Finding:
    if on:
        return Finding("ok", "appendonly", "yes", "")
    return Finding("wrong", "appendonly", "no", "accepted jobs would be lost with the server; set it to yes")


def _eviction(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("ok", "maxmemory-policy", policy, "")
    return Finding("wrong", "maxmemory-policy", policy, "Redis may throw jobs away; set it to noeviction")


def _compact(configuration: dict[str, str], tunes: bool) -> Finding:
    key = next((name for name in sorted(configuration) if name.startswith("hash-max")), "hash-max-listpack-value")
    value = configuration.get(key, "unknown")
    if value == "unknown":
        return Finding("warning", key, value, f"not told; {COMPACT_BYTES} halves a job's memory")
    if int(value) >= COMPACT_BYTES:
        return Finding("ok", key, value, "")
    if tunes:
        return Finding("ok", key, value, f"Jarvis raises it to {COMPACT_BYTES} (JARVIS_TUNE_REDIS)")
    return Finding("warning", key, value, f"a job takes about twice the memory; set it to {COMPACT_BYTES}")


def _catalogue(settings: Settings) -> Iterator[Finding]:
    try:
        catalogue = Catalogue.load(settings.catalogue)
    except SettingsInvalid as error:
        yield Finding("wrong", "JARVIS_CATALOGUE", str(settings.catalogue), str(error))
        return
    yield Finding("ok", "JARVIS_CATALOGUE", str(settings.catalogue), f"{len(catalogue.models)} models")
    for model in catalogue.models.values():
        key = f"models.{model.alias}.weights"
        try:
            found = model.weights_path()
        except SettingsInvalid as error:
            yield Finding("wrong", key, model.weights, str(error))
            continue
        message = "there" if model.local or model.engine == "fake" else f"{found} of the hub, not looked at"
        yield Finding("ok", key, model.weights or "-", message)


def _recurring(settings: Settings) -> Iterator[Finding]:
    if settings.recurring is not None and not settings.recurring.is_file():
        yield Finding("wrong", "JARVIS_RECURRING", str(settings.recurring), "no such file")
