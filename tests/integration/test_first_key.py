"""The first key that `make run` makes, and `jarvis keys` beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import scripts
from common.access import id_of
from common.api_keys import ApiKeys
from common.settings import Settings
from ops import first_key, own_key
from tests.redis_server import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """An empty Redis and an empty folder."""
    return Settings(redis_url=redis_url, data_dir=tmp_path)


async def test_the_first_start_makes_a_key_and_prints_it_once(settings: Settings) -> None:
    file = own_key.kept_in(settings.data_dir)
    said = "\n".join(await first_key.ensure(settings))
    text = own_key.read(file)
    assert text
    assert id_of(text)
    assert text in said
    assert file.stat().st_mode & 0o777 == 0o600
    again = await first_key.ensure(settings)
    assert again == [f"the API key of this machine is in {file}"]
    client = scripts.connect(settings)
    [key] = await ApiKeys(client, settings).all()
    assert (key.owner, key.name, key.scopes) == ("admin", "first", ("jobs", "admin"))
    await client.flushdb()  # another Redis: what is in the file is nothing there, and may have been revoked before
    await first_key.ensure(settings)
    assert own_key.read(file) != text
    await client.aclose()


async def test_a_kept_key_that_counts_no_more_is_said_to_be_none(settings: Settings) -> None:
    await first_key.ensure(settings)
    client = scripts.connect(settings)
    keys = ApiKeys(client, settings)
    await keys.revoke((await keys.all())[0].id, "test")
    assert "there are API keys, none of them in" in (await first_key.ensure(settings))[0]
    assert len(await keys.all()) == 1
    await client.aclose()


async def test_without_redis_no_key_is_made_and_that_is_said(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0", "redis_timeout_s": 5.0})
    assert await first_key.ensure(away) == ["no API key could be made or looked up: Redis does not answer"]


def jarvis(settings: Settings, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `jarvis keys` as a person would."""
    told = {"JARVIS_REDIS_URL": settings.redis_url, "JARVIS_DATA_DIR": str(settings.data_dir), **environment}
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", "keys", *command],
        cwd=ROOT, env={**os.environ, **told}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_keys_are_made_changed_and_revoked_on_the_command_line(settings: Settings) -> None:
    limits = ("--limit", "requests=100/3600s", "--limit", "weight=2")
    made = jarvis(settings, "create", "--name", "app", "--tier", "free", "--owner", "team-a", *limits, "--json")
    assert made.returncode == 0, made.stderr
    one: dict[str, Any] = json.loads(made.stdout)
    assert id_of(one["key"]) == one["id"]
    assert (one["name"], one["owner"], one["tier"]) == ("app", "team-a", "free")
    assert one["limits"] == ["requests=100/3600s", "weight=2"]

    rotated = jarvis(settings, "rotate", one["id"], "--grace", "0")
    assert id_of(rotated.stdout.strip()) == one["id"]
    assert "the old one counts no more" in rotated.stderr
    changed = jarvis(settings, "limits", one["id"], "--limit", "waiting=5", "--tier", "custom")
    assert "limits   waiting=5" in changed.stdout
    assert "revoked" in jarvis(settings, "revoke", one["id"]).stdout
    listed = jarvis(settings, "list")
    assert f"{one['id']}  app" in listed.stdout
    audit = jarvis(settings, "audit")
    assert audit.stdout.count("cli:") == 4
    for shown in (listed, audit, changed):
        assert one["key"][16:] not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("create", "--name", "a", "--tier", "gold"), 2, "tier is 'gold'; allowed: free, premium, custom"),
        (("create", "--name", "a", "--tier", "free", "--limit", "speed=1"), 2, "limits is 'speed=1'; allowed: what="),
        (("create", "--name", "a", "--tier", "free", "--expires", "soon"), 2, "--expires is 'soon'; allowed"),
        (("revoke", "aaaaaaaaaaaa"), 1, "no API key 'aaaaaaaaaaaa'"),
    ],
)
def test_what_is_wrong_is_said(settings: Settings, command: tuple[str, ...], code: int, said: str) -> None:
    done = jarvis(settings, *command)
    assert done.returncode == code
    assert said in done.stderr


def test_without_redis_that_is_said(settings: Settings) -> None:
    done = jarvis(settings, "list", JARVIS_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert done.returncode == 3
    assert "no Redis at redis://127.0.0.1" in done.stderr


def test_the_commands_of_the_page_run(settings: Settings, tmp_path: Path) -> None:
    page = (ROOT / "ops" / "docs" / "tenants.md").read_text()
    commands = "\n".join(text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "jarvis keys" in text)
    script = f'set -euo pipefail; jarvis() {{ "{sys.executable}" -m ops.cli "$@"; }}\n{commands}'
    told = {"JARVIS_REDIS_URL": settings.redis_url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for did in ("create", "limits", "rotate", "revoke"):
        assert re.search(rf"cli:\S+ +{did} ", done.stdout)
