"""Settings: read once, checked at start, explained by name and value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import SettingsInvalid
from common.settings import Settings, load_settings, mask


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the person who runs the tests do not matter."""
    for name in os.environ:
        if name.startswith("JARVIS_") or name == "PORT":
            monkeypatch.delenv(name)


def test_the_defaults_hold_without_any_variable() -> None:
    settings = load_settings()
    assert (settings.lease_s, settings.shards, settings.namespace) == (30.0, 1, "jarvis")
    assert settings.port == 8000
    assert settings.blobs == f"file://{Path('.jarvis/blobs').absolute()}"


def test_variables_are_read_with_their_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JARVIS_LEASE_S", "2.5")
    monkeypatch.setenv("JARVIS_BLOB_URL", "memory://blobs")
    monkeypatch.setenv("LEASE_S", "9")
    settings = load_settings()
    assert (settings.lease_s, settings.blobs) == (2.5, "memory://blobs")


def test_the_platforms_port_counts_unless_ours_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9001")
    assert load_settings().port == 9001
    monkeypatch.setenv("JARVIS_PORT", "9002")
    assert load_settings().port == 9002


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("JARVIS_LEASE_S", "soon", "valid number"),
        ("JARVIS_LEASE_S", "0", "greater than 0"),
        ("JARVIS_SHARDS", "257", "less than or equal to 256"),
        ("JARVIS_MAX_DEPTH", "0", "greater than or equal to 1"),
        ("JARVIS_NAMESPACE", "not good", "pattern"),
        ("JARVIS_LOG_LEVEL", "loud", "debug"),
        ("JARVIS_PORT", "70000", "65535"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    text = str(refused.value)
    assert name in text
    assert repr(value) in text
    assert wanted in text


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JARVIS_LEASE_S", "soon")
    monkeypatch.setenv("JARVIS_SHARDS", "many")
    with pytest.raises(SettingsInvalid, match=r"(?s)JARVIS_SHARDS.*JARVIS_LEASE_S|JARVIS_LEASE_S.*JARVIS_SHARDS"):
        load_settings()


def test_an_idle_read_must_end_before_redis_counts_as_dead() -> None:
    with pytest.raises(SettingsInvalid, match="bell_timeout_s"):
        load_settings(bell_timeout_s=5, redis_timeout_s=5)


def test_a_password_in_a_wrong_address_is_not_shown() -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(redis_url=["redis://user:secret@host/0"])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("redis://user:se:c@ret@host:1/0", "redis://user:***@host:1/0"),
        ("redis://user@host:1/0", "redis://user@host:1/0"),
        ("redis-cluster://u:secret@a:1,b:2", "redis-cluster://u:***@a:1,b:2"),
        (
            "redis-sentinel://u:se@a:1/m/0?sentinel_username=x&sentinel_password=cret",
            "redis-sentinel://u:***@a:1/m/0?sentinel_username=x&sentinel_password=***",
        ),
        ("redis://host:1/0?password=secret&db=1", "redis://host:1/0?password=***&db=1"),
        ("", ""),
    ],
)
def test_passwords_in_addresses_are_masked(url: str, shown: str) -> None:
    assert mask(url) == shown


def test_the_effective_values_are_shown_without_passwords() -> None:
    values = load_settings(redis_url="redis://user:secret@host:1/0").masked()
    assert values["redis_url"] == "redis://user:***@host:1/0"
    assert set(values) == set(Settings.model_fields)


def test_settings_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValidationError):
        load_settings().lease_s = 1.0  # type: ignore[misc]


def test_every_field_says_what_it_decides() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_duration_and_size_carries_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation is float:
            assert name.endswith("_s"), name
