"""All settings: one frozen object, read once from `JARVIS_*` variables, checked at start.

Every name carries its unit; every field says in one line what it decides.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common import address
from common.destinations import networks_of
from common.errors import InvalidField, SettingsInvalid
from common.limits import Policy

Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Effective settings of one process."""

    model_config = SettingsConfigDict(env_prefix="JARVIS_", frozen=True, extra="ignore")

    # Redis
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="where Redis answers: a server, a cluster or sentinels"
    )
    namespace: str = Field("jarvis", pattern=r"^[a-z0-9_-]{1,32}$", description="first part of every key")
    shards: int = Field(1, ge=1, le=256, description="hash tags that the queues are spread over")
    redis_timeout_s: Seconds = Field(5.0, description="no call to Redis is blocked longer (besides a blocking read)")
    tune_redis: bool = Field(
        True, description="set hash-max-listpack-value and zset-max-listpack-entries when Redis lets us (memory, speed)"
    )

    # Queue
    lease_s: Seconds = Field(30.0, description="how long a worker may be silent before its jobs go to others")
    bell_timeout_s: Seconds = Field(4.0, description="how long an idle worker waits before it looks by itself")
    max_deaths: Count = Field(3, description="workers that may die under a job before it is parked as poison")
    max_attempts: Count = Field(3, description="handled failures of a job before it is failed, unless it says")
    retry_delay_s: Seconds = Field(1.0, description="pause after the first handled failure; doubles each time")
    retry_delay_max_s: Seconds = Field(300.0, description="longest such pause")
    max_depth: Count = Field(1_000_000, description="waiting jobs that one queue accepts")
    default_ttl_s: Seconds = Field(86_400, description="whole life of a job that does not say")
    default_timeout_s: Seconds = Field(600, description="running time of a job that does not say")
    retention_s: Seconds = Field(86_400, description="how long a finished job's record and result are kept")
    idempotency_s: Seconds = Field(86_400, description="how long an Idempotency-Key is remembered")
    events_kept: Count = Field(10_000, description="state events kept in a shard's stream")

    # Tenants
    tiers: dict[str, tuple[str, ...]] = Field(
        {"free": ("requests=100/1h",), "premium": ("requests=1000/1h", "weight=2"), "custom": ()},
        description="what the keys of each tier may use, limit by limit (JSON); a key's own limits win",
    )
    usage_kept_days: int = Field(
        400, ge=1, le=3660, description="how long sums of usage by key, model and day are kept"
    )

    key_cache_s: float = Field(
        2.0, ge=0, le=60, description="how long a web process trusts what it read of a key: a revoked one works so long"
    )
    metrics_open: bool = Field(False, description="whether /metrics needs no API key, once there are keys")

    # Batches
    batch_jobs: Count = Field(256, description="jobs of a process' batches that wait or run at a time, in the low lane")
    batch_runs: Count = Field(32, description="batches that one process works on at a time; they share batch_jobs")
    max_batches: Count = Field(1_000, description="unfinished batches that are accepted")
    max_batch_lines: Count = Field(50_000, description="most lines of a batch")
    max_owner_batches: Count = Field(200, description="unfinished batches of one owner, where callers have API keys")
    batch_kept_s: Seconds = Field(30 * 86_400, description="how long a finished batch's record is kept")
    file_kept_s: Seconds = Field(30 * 86_400, description="how long a file is kept that does not say")
    max_files: Count = Field(10_000, description="files that are kept at a time")
    max_owner_files: Count = Field(2_000, description="files of one owner, where callers have API keys")

    # Sizes
    max_file_bytes: Count = Field(200 * 1024 * 1024, description="largest file that may be uploaded")
    max_body_bytes: Count = Field(8 * 1024 * 1024, description="largest request body")
    max_audio_bytes: Count = Field(256 * 1024 * 1024, description="largest recording that may be uploaded")
    max_audio_s: Seconds = Field(7200, description="longest recording that is transcribed")
    inline_bytes: Count = Field(65_536, description="larger inputs and results go to the blob store")
    data_dir: Path = Field(Path(".jarvis"), description="where this node keeps blobs and the embedded Redis' data")
    blob_url: str = Field("", description="blob store (an fsspec address); empty: a folder in data_dir")

    # Files
    catalogue: Path = Field(Path(__file__).parent.parent / "ops" / "models.toml", description="the model catalogue")
    recurring: Path | None = Field(None, description="recurring jobs (TOML); none: no recurring jobs")

    # Web
    host: str = Field("127.0.0.1", description="address the web process listens on")
    port: int = Field(
        default_factory=lambda: int(os.environ.get("PORT", "8000")),
        ge=0,
        le=65_535,
        description="its port ($PORT counts too)",
    )
    wait_max_s: Seconds = Field(60.0, description="longest Prefer: wait")

    # Webhooks
    webhook_allow: str = Field(
        "",
        description="addresses or networks (10.0.0.5,192.168.0.0/16) that webhooks may reach though they are not public"
        " or not https",
    )
    webhook_timeout_s: Seconds = Field(
        15.0, description="one attempt at a delivery, from looking up its host to its end"
    )
    webhook_retry_s: tuple[Seconds, ...] = Field(
        (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="pauses between attempts, each ±10 %; after the last the delivery is given up",
    )
    webhook_slots: Count = Field(64, description="attempts that a delivery worker makes at once")
    webhook_body_bytes: Count = Field(262_144, description="a full payload that would be larger is sent thin")
    webhook_retention_s: Seconds = Field(259_200, description="how long a delivery that has ended can be looked at")
    webhook_kept: Count = Field(100_000, description="deliveries kept in a shard's list")

    # Workers
    slots: Count | None = Field(
        None, description="jobs a worker runs at once; none: the catalogue's, else the kind's default"
    )
    grace_s: Seconds = Field(30.0, description="how long a stopping worker lets its jobs finish")
    device: str | None = Field(
        None,
        pattern=r"^(auto|cpu|\d+(,\d+)*)$",
        description="the node's GPUs a worker may hold (1 or 0,1), auto, or cpu; none: a free one, else CPU",
    )
    device_wait: bool = Field(True, description="wait for a GPU that other workers hold; false: end with an error")
    device_lock_dir: Path | None = Field(
        None, description="where a node's workers lock its GPUs; none: /tmp/jarvis-<user id>"
    )
    devices: str = Field("", description="simulated GPUs in place of the node's, for tests: 0:24GiB,1:24GiB")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )

    @field_validator("redis_url")
    @classmethod
    def _address_is_known(cls, url: str) -> str:
        address.parse(url)
        return url

    @field_validator("tiers")
    @classmethod
    def _tiers_are_limits(cls, tiers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if not tiers:
            raise ValueError("at least one tier is needed: each key is in one")
        for name, texts in tiers.items():
            try:
                Policy.parse(texts, name)
            except InvalidField as error:
                raise ValueError(str(error)) from None
        return tiers

    @field_validator("webhook_allow")
    @classmethod
    def _networks_are_known(cls, text: str) -> str:
        networks_of(text)
        return text

    @model_validator(mode="after")
    def _clocks_fit(self) -> Self:
        # A healthy idle read must never look like a dead server (acceptance test 8).
        if self.bell_timeout_s >= self.redis_timeout_s:
            raise ValueError(
                f"bell_timeout_s ({self.bell_timeout_s}) must be less than redis_timeout_s ({self.redis_timeout_s})"
            )
        return self

    @property
    def blobs(self) -> str:
        """The blob store's address, with its default filled in."""
        return self.blob_url or f"file://{(self.data_dir / 'blobs').absolute()}"

    def masked(self) -> dict[str, Any]:
        """Every effective value, with passwords in addresses masked."""
        values = self.model_dump(mode="json")
        return {name: mask(value) if name.endswith("_url") else value for name, value in values.items()}


def mask(url: str) -> str:
    """An address without its passwords."""
    url = re.sub(r"([?&](?:sentinel_)?password=)[^&]*", r"\1***", url)
    head, at, tail = url.rpartition("@")
    scheme, slashes, credentials = head.partition("://")
    if not at or ":" not in credentials:
        return url
    return f"{scheme}{slashes}{credentials.split(':')[0]}:***@{tail}"


def load_settings(**values: Any) -> Settings:
    """Read the settings, or raise SettingsInvalid naming each bad key and value."""
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise SettingsInvalid("settings are wrong:\n" + "\n".join(lines)) from None


def _explain(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if not name:
        return f"  {detail['msg']}"
    value = mask(str(detail["input"])) if name.endswith("_url") else repr(detail["input"])
    return f"  JARVIS_{name.upper()} has value {value}: {detail['msg']}"
