"""`jarvis check`: what it finds wrong with settings, Redis and the catalogue."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ops.cli import app
from tests.redis_server import RedisServer, free_port


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JARVIS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A catalogue whose one model needs no weights."""
    file = tmp_path / "models.toml"
    file.write_text('[models.words]\nkind = "generation"\nengine = "fake"\nmax_model_len = 64\n')
    return file


def checked(*arguments: str, **environment: str) -> Result:
    """`jarvis check` with these JARVIS_ variables."""
    return CliRunner().invoke(
        app, ["check", *arguments], env={f"JARVIS_{name}": value for name, value in environment.items()}
    )


def test_check_passes_on_a_good_installation(start_redis: Callable[..., RedisServer], models: Path) -> None:
    server = start_redis(aof=True)
    result = checked(REDIS_URL=server.url, CATALOGUE=str(models))
    assert result.exit_code == 0, result.output
    assert "lease_s = 30.0" in result.stdout
    assert "ok       appendonly = yes" in result.stdout


def test_check_names_what_is_wrong_with_redis(start_redis: Callable[..., RedisServer], models: Path) -> None:
    server = start_redis(config={"maxmemory-policy": "allkeys-lru", "hash-max-ziplist-value": "64"})
    result = checked(REDIS_URL=server.url, CATALOGUE=str(models), TUNE_REDIS="false")
    assert result.exit_code == 1
    assert result.stderr == "wrong: appendonly = no, maxmemory-policy = allkeys-lru\n"
    assert re.search(r"warning  hash-max-\w+-value = 64: .*set it to 1024", result.stdout)


def test_check_names_a_redis_that_does_not_answer_without_its_password(models: Path) -> None:
    port = free_port()
    result = checked(REDIS_URL=f"redis://me:secret@127.0.0.1:{port}/0", CATALOGUE=str(models))
    assert result.exit_code == 1
    assert f"wrong: JARVIS_REDIS_URL = redis://me:***@127.0.0.1:{port}/0" in result.stderr
    assert "secret" not in result.output


def test_check_names_missing_weights_and_broken_catalogues(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.big]\nkind = "generation"\nengine = "vllm"\nweights = "./none"\nmax_model_len = 64\n')
    assert "models.big.weights = ./none" in checked(REDIS_URL=redis_url, CATALOGUE=str(file)).stderr
    file.write_text("[models\n")
    assert f"JARVIS_CATALOGUE = {file}" in checked(REDIS_URL=redis_url, CATALOGUE=str(file)).stderr


def test_check_names_a_bad_setting_and_its_value() -> None:
    result = checked(LEASE_S="soon")
    assert result.exit_code == 1
    assert "JARVIS_LEASE_S has value 'soon'" in result.stderr


def test_check_warns_of_a_variable_that_is_no_setting(redis_url: str, models: Path) -> None:
    result = checked(REDIS_URL=redis_url, CATALOGUE=str(models), LEASES="9")
    assert "warning  JARVIS_LEASES = '9': does nothing: no such setting; did you mean JARVIS_LEASE_S?" in result.stdout


def test_check_json_is_one_document(start_redis: Callable[..., RedisServer], models: Path) -> None:
    document = json.loads(checked("--json", REDIS_URL=start_redis(aof=True).url, CATALOGUE=str(models)).stdout)
    assert document["ok"] is True
    assert document["settings"]["lease_s"] == 30.0
    assert document["findings"]
    assert [finding for finding in document["findings"] if finding["level"] != "ok"] == []
