"""Reads what an arq user writes: a settings class, with arq's names."""

from __future__ import annotations

import inspect
from typing import Any
from urllib.parse import quote

from arq.connections import RedisSettings
from arq.worker import Worker as ArqWorker

from common.address import SENTINEL
from common.settings import Settings, load_settings


def get_kwargs(settings_cls: Any) -> dict[str, Any]:
    """The worker's settings out of an arq-style settings class, its bases included, or a dict."""
    known = set(inspect.signature(ArqWorker).parameters) | {"settings"}
    if isinstance(settings_cls, dict):
        return {name: value for name, value in settings_cls.items() if name in known}
    return {name: inspect.getattr_static(settings_cls, name) for name in known if hasattr(settings_cls, name)}


def effective_settings(settings: Settings | None, arq_settings: dict[str, Any]) -> Settings:
    """Our settings: given, else in `ctx`, else from the environment; `redis_settings` says where Redis is."""
    settings = settings or (arq_settings.get("ctx") or {}).get("settings") or load_settings()
    given: RedisSettings | None = arq_settings.pop("redis_settings", None)
    if given is None:
        return settings
    return settings.model_copy(update={"redis_url": _url(given)})


def _url(given: RedisSettings) -> str:
    credentials = f"{quote(given.username or '', '')}:{quote(given.password, '')}@" if given.password else ""
    if given.sentinel and not isinstance(given.host, str):
        nodes = ",".join(f"{host}:{port}" for host, port in given.host)
        return f"{SENTINEL}://{credentials}{nodes}/{quote(given.sentinel_master, '')}/{given.database}"
    scheme = "rediss" if given.ssl else "redis"
    return f"{scheme}://{credentials}{given.host}:{given.port}/{given.database}"
